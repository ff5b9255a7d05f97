"""Train the small vision models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rankwise.cli.app import Json, app, console, continues, typed


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="vit-cifar10 (a classifier) or clip-cifar10 (images and captions).")],
    out: Annotated[Path, typer.Option(help="Folder to write (replaced as a whole).")],
    data: Annotated[
        str | None, typer.Option(help="Folder with CIFAR-10 in the hub's layout.", show_default="the hub's")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of weights, order, crops, looks and captions.")] = 0,
    json_: Json = False,
) -> None:
    """Train a small vision model from scratch: minutes an epoch on a CPU, and it goes on after a kill.

    Examples:

    * rankwise pretrain vit-cifar10 --data cifar10 --out models/vit
    * rankwise pretrain clip-cifar10 --epochs 30 --out models/clip
    """
    from rankwise.jobs.early import check_pretraining

    check_pretraining(name, out, data=data, epochs=epochs, batch_size=batch_size, seed=seed)
    continues()
    from rankwise.cli.app import Progress
    from rankwise.jobs.pretrain import pretrain as trained

    with Progress(quiet=json_) as progress:
        card = trained(
            name,
            out,
            data=data,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            command=typed(),
            on_event=progress.event,
        )
    if json_:
        print(json.dumps(card))
        return
    for note in card["notes"]:
        console.print(f"* {note}", style="dim")
    console.print(f"accuracy  {card['accuracy']:.1f} % of {card['tested']:,} test images, {card['how']}")
    console.print(f"model     {out}\ncard      {out}/README.md", highlight=False)
