"""Three small transformers learn, within a minute, to answer from their context: loss, accuracies and measures."""

from pathlib import Path

from rankwise.dynamics import InContextExperiment, InContextTask
from rankwise.jobs.in_context import theory_beside
from rankwise.report.plots.dynamics import learning_from_context
from rankwise.report.plots.shared import save

task = InContextTask(classes=128, labels=8, dim=15, pairs=4, n_max=6, p_novel=1.0, batch_size=64)
experiment = InContextExperiment(task, steps=5000, every=100, eval_size=500, hidden=64, learning_rate=0.03)
frame = experiment.run(seeds=3).frame
theory = theory_beside(frame, pairs=task.pairs, labels=task.labels)
save(
    learning_from_context(frame, pairs=task.pairs, labels=task.labels, theory=theory), Path("learning_from_context.png")
)
