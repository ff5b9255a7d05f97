"""Light for photographs taken against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankwise.cli.app import Json, app, console, print_json, typed

if TYPE_CHECKING:
    from rankwise.jobs.enhance import Enhanced


@app.command()
def enhance(
    path: Annotated[Path, typer.Argument(help="A photograph, a folder of them, or a video.")],
    with_: Annotated[Path, typer.Option("--with", help="Folder that rankwise enhance-fit wrote.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the results, report.html and enhance.json (replaced as a whole).")
    ],
    smooth: Annotated[
        float, typer.Option(help="Of a video: share of a frame's map that is the last frame's, from 0 to below 1.")
    ] = 0.8,
    json_: Json = False,
) -> None:
    """Give photographs their light (CLIP-LIT), with a page on which a line is dragged between before and after.

    Any size, 8 or 16 bits, EXIF kept; a video frame by frame, its sound copied.

    Examples:

    * rankwise enhance photo.jpg --with light --out lit
    * rankwise enhance clip.mp4 --with light --smooth 0.9 --out lit
    """
    from rankwise.jobs.early import check_enhancing

    check_enhancing(path, out, fitted=with_, smooth=smooth)
    from rich.progress import track

    from rankwise.jobs.enhance import HEADER, enhance_files
    from rankwise.report.tables import terminal

    quiet, command = json_ or not console.is_terminal, typed()
    done = enhance_files(
        path,
        out,
        fitted=with_,
        smooth=smooth,
        each=lambda items, count: track(
            items, "enhancing", total=count, console=console, transient=True, disable=quiet
        ),
        report=lambda folder, found: _page(folder, found, command),
    )
    if json_:
        print_json(done.as_dict())
        return
    console.print(terminal(HEADER, done.rows()))
    for note in done.notes:
        console.print(f"* {note}", style="dim")
    console.print(f"results   {out}\nreport    {out}/report.html", soft_wrap=True, highlight=False)


def _page(folder: Path, done: Enhanced, command: str) -> None:
    from rankwise.jobs.enhance import HEADER
    from rankwise.report.slider import render_pairs

    left = len(done.files) - len(done.pairs)
    render_pairs(
        folder / "report.html",
        title="Light, before and after",
        subtitle=f"enhanced with {done.fitted}",
        command=command,
        header=HEADER,
        rows=done.rows(),
        pairs=done.pairs,
        notes=[*done.notes, *([f"{left} more are in the folder"] if left > 0 else [])],
    )


@app.command(name="enhance-fit")
def enhance_fit(
    dark: Annotated[Path, typer.Argument(help="Folder of photographs taken against the light.")],
    well_lit: Annotated[Path, typer.Argument(help="Folder of well-lit ones, of other things.")],
    out: Annotated[Path, typer.Option(help="Folder to write (replaced as a whole).")],
    model: Annotated[str, typer.Option(help="A CLIP: a bundled name, a folder, or a hub id.")] = "clip-cifar10",
    preset: Annotated[
        str | None,
        typer.Option(
            help="published, or small, for the bundled CLIP and minutes of a CPU.", show_default="small if bundled"
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="full (278,790 parameters) or light.", show_default="the preset's")
    ] = None,
    identity: Annotated[
        str, typer.Option(help="What compares content: vit, or a ResNet of open-clip, as in RN101/openai.")
    ] = "vit",
    rounds: Annotated[
        int | None, typer.Option(help="Of network and prompts in turn.", show_default="the preset's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json_: Json = False,
) -> None:
    """Learn what light is from two folders of photographs (CLIP-LIT), without pairs.

    Cut short, the same command goes on from the last round.

    Examples:

    * rankwise enhance-fit photos/dark photos/good --out light
    * rankwise enhance-fit dark good --model openai/clip-vit-base-patch32 --out light
    """
    from rankwise.jobs.early import check_light

    changes = {"network": network, "rounds": rounds}
    check_light(dark, well_lit, out, model=model, preset=preset, seed=seed, **changes)
    from rankwise.cli.app import Progress, continues
    from rankwise.jobs.enhance import fit_enhancer
    from rankwise.report.tables import terminal

    continues()
    with Progress(quiet=json_) as progress:
        enhancer = fit_enhancer(
            dark, well_lit, out, model=model, preset=preset, identity=identity, seed=seed,
            on_event=progress.event, **changes,
        )  # fmt: skip
    if json_:
        print_json({"out": str(out), "history": enhancer.history, "starts": enhancer.starts})
        return
    header = ["round", "dark", "result", "well-lit"]
    rows = [[f"{h['round']:.0f}", *(f"{h[k]:.3f}" for k in ("dark", "result", "well"))] for h in enhancer.history]
    console.print(terminal(header, rows))
    console.print("* probability of the backlit prompt, mean over the pictures given", style="dim")
    console.print(
        f"enhancer  {out}\ntry       rankwise enhance PHOTO --with {out} --out lit", soft_wrap=True, highlight=False
    )
