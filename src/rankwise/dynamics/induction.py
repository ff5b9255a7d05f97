"""How a transformer comes to answer from its context, suddenly, and what in the data decides whether it does.

A network of two attention layers sees ``item, label, item, label, …, item`` and says the last item's label. Two ways
lead there: remember each class's label in the weights (IWL), or look it up in the context (ICL), by an **induction
head**: layer 1 copies into each label the item before it (its attention to that item is ILA1), layer 2 compares the
target with these copies and takes the label whose copy is like it (TILA2).

Data decide. ICL is favoured by many classes ``K``, bursty contexts ``B`` and noisy items ``ε``; IWL by few and steady
ones; at Zipf's ``α ≈ 1`` both are learned. Neither drives the other out: they are learned side by side, each at its own
rate, and whichever explains the loss first leaves the other without a gradient.

Time decides. With ``L`` labels, of which the context has ``N < L``, the loss first falls to "one of the context's
labels" (log N), stays there, and falls at once when β₁ (previous token), α (match) and ξ (classifier) have found each
other:

    w₁ = e^{β₁} / (e^{β₁} + 2N),     w₂ = e^{α w₁} / (e^{α w₁} + N - 1)
    ℓ = -log[ e^{ξ w₂} / (e^{ξ w₂} + (N - 1) e^{ξ (1 - w₂) / (N - 1)} + L - N) ],     ∇ℓ(0) = (0, 0, 1/L - 1/N)

Where L = N the start is a critical point of this loss: nothing begins, and networks of most seeds learn nothing.

The parts: `InContextTask` draws the data, `AttentionOnlyNet` is the network, `progress` measures it (and any decoder of
transformers), `MinimalInductionHead` and `PhenomenologicalModel` are the theory, `InContextExperiment` trains a stack
of seeds as one.

Source: Reddy, "The mechanistic basis of data dependence and abrupt learning in an in-context classification task", ICLR
2024, arXiv 2312.03002. Its code is not published. What circulates draws sequences in loops and differs: there networks
have biases, 1/√d, an output projection, or an optimiser of their own. ℓ above is a reconstruction with the properties
that the paper states, since its exact form is not public.

What people get wrong: weight decay is not multiplied by the learning rate; α is Zipf's exponent in the data and the
match's strength in the theory; new classes keep the labels that there are; two classes of a context may share a label,
which `InContextTask(no_repeats=True)` rules out.
"""

from rankwise.dynamics.in_context.experiment import InContextExperiment as InContextExperiment
from rankwise.dynamics.in_context.experiment import InContextResult as InContextResult
from rankwise.dynamics.in_context.measures import Progress as Progress
from rankwise.dynamics.in_context.measures import progress as progress
from rankwise.dynamics.in_context.network import AttentionOnlyNet as AttentionOnlyNet
from rankwise.dynamics.in_context.task import InContextBatch as InContextBatch
from rankwise.dynamics.in_context.task import InContextTask as InContextTask
from rankwise.dynamics.in_context.theory import MinimalInductionHead as MinimalInductionHead
from rankwise.dynamics.in_context.theory import PhenomenologicalModel as PhenomenologicalModel
from rankwise.dynamics.in_context.theory import hand_set as hand_set
