"""Data sets as a few pictures and what makes their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, app, console, print_json, typed


@app.command()
def distill(
    data: Annotated[str, typer.Option(help="Folder of pictures, a folder a class; or digits, mnist, a parquet folder, "
                                      "a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write (appears when it is whole).")],
    ipc: Annotated[int, typer.Option(help="Pictures for each class.")] = 10,
    model: Annotated[str, typer.Option(help="A CLIP that makes labels: a bundled name, a folder, or a hub id.")]
    = "clip-cifar10",
    template: Annotated[str, typer.Option(help="Text of a class; {} is its name with an article.")] = "a photo of {}",
    tiles: Annotated[int, typer.Option(help="Rows and columns of squares in a picture.")] = 2,
    rank: Annotated[int, typer.Option(help="Of the adapters of convolutions and linear layers; 0: none.")] = 8,
    head_rank: Annotated[int, typer.Option(help="Of the head's adapter; 0: none.")] = 64,
    teachers: Annotated[int, typer.Option(help="Snapshots of a small network, whose logits are averaged.")] = 3,
    epochs: Annotated[int, typer.Option(help="Passes over the pictures that the adapters learn from.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Of the adapters; a CLIP wider than the bundled one needs less, "
                                      "e.g. 0.001.")] = 5e-3,
    update_images: Annotated[bool, typer.Option("--update-images", help="Change tiles until the CLIP reads them as "
                                                "what they were made of.")] = False,
    empty: Annotated[bool, typer.Option("--empty", help="Squares that show nothing may be chosen, as published.")]
    = False,
    no_flip: Annotated[bool, typer.Option("--no-flip", help="Nothing is mirrored: where left and right differ.")]
    = False,
    split: Annotated[str | None, typer.Option(help="Of data that has several, e.g. train.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most pictures, chosen by their content.", show_default="all")]
    = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json_: Json = False,
) -> None:  # fmt: skip
    """Make a training set a few pictures and a small generator of their labels (HeLlO).

    Pictures are tiles of real ones. Labels come from a CLIP with adapters, of which only the adapters are kept.

    Examples:

    * rankwise distill --data photos --ipc 10 --out few
    * rankwise distill --data mnist --split train --no-flip --ipc 1 --out few
    """
    from rankwise.jobs.early import check_distillation

    check_distillation(data, out, model=model, template=template, limit=limit, ipc=ipc, tiles=tiles, rank=rank,
                       head_rank=head_rank, teachers=teachers, epochs=epochs, lr=learning_rate, seed=seed)  # fmt: skip
    from rankwise.cli.app import Progress
    from rankwise.jobs.distill import distill_pictures
    from rankwise.report.page import write_distilled
    from rankwise.report.tables import terminal

    command = typed()
    with Progress(quiet=json_) as progress:
        done = distill_pictures(
            data, out, model=model, template=template, ipc=ipc, tiles=tiles, rank=rank, head_rank=head_rank,
            teachers=teachers, epochs=epochs, lr=learning_rate, update_images=update_images, empty=empty,
            flip=not no_flip, split=split, limit=limit, seed=seed,
            report=lambda folder, found: write_distilled(folder, found, command), on_event=progress.event,
        )  # fmt: skip
    if json_:
        print_json(done.as_dict())
        return
    console.print(terminal(*done.table()))
    for note in done.few.notes:
        console.print(f"* {note}", style="dim")
    console.print(f"\npictures  {out}\nreport    {out}/report.html", soft_wrap=True, highlight=False)


@app.command(name="distill-train")
def distill_train(
    run: Annotated[Path, typer.Argument(help="A folder written by `rankwise distill`.")],
    data: Annotated[str, typer.Option(help="Test pictures, a folder a class; or what else distill takes.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the student.", show_default="not kept")] = None,
    split: Annotated[str | None, typer.Option(help="Of data that has several, e.g. test.")] = None,
    student: Annotated[str, typer.Option(help="convnet or resnet.")] = "convnet",
    width: Annotated[int, typer.Option(help="Channels of the student's first stage.")] = 32,
    epochs: Annotated[int, typer.Option(help="Passes over the distilled pictures.")] = 300,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json_: Json = False,
) -> None:
    """Train a small network from distilled pictures alone, and judge it on test pictures.

    Examples:

    * rankwise distill-train few --data photos-to-test
    * rankwise distill-train few --data mnist --split test --student resnet --out net
    """
    from rankwise.jobs.early import check_student

    check_student(run, data, out, student=student, width=width, epochs=epochs, seed=seed)
    from rankwise.cli.app import Progress
    from rankwise.jobs.distill import train_from
    from rankwise.report.tables import terminal

    with Progress(quiet=json_) as progress:
        done = train_from(run, data, out=out, split=split, student=student, width=width, epochs=epochs, seed=seed,
                          on_event=progress.event)  # fmt: skip
    if json_:
        print_json(done.as_dict())
        return
    console.print(terminal(*done.table()))
    for note in done.notes:
        console.print(f"* {note}", style="dim")
    told = "" if out is None else f"\nstudent   {out}"
    console.print(f"{done.accuracy:.1%} of {done.tested:,} test pictures, from {done.trained:,}{told}", highlight=False)
