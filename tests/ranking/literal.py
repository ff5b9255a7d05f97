"""PerSEval by loops, a pair at a time, as its definitions say: what the library is compared with."""

import math


def differences(between, to_document):
    n = len(between)
    out = [[0.0] * n for _ in range(n)]
    for j in range(n):
        others = [k for k in range(n) if k != j]
        quotient = {k: between[j][k] / to_document[j] if to_document[j] else 0.0 for k in others}
        whole = sum(math.exp(q) for q in quotient.values())
        for k in others:
            out[j][k] = between[j][k] * math.exp(quotient[k]) / whole
    return out


def degress(X, Y):
    n = len(X)
    return [
        sum((min(X[j][k], Y[j][k]) + 1e-5) / (max(X[j][k], Y[j][k]) + 1e-5) for k in range(n) if k != j) / (n - 1)
        for j in range(n)
    ]


def step(x, alpha, beta):
    return 1 / (1 + 10**alpha * math.exp(-(10**beta) * x))


def discount(accuracy, *, alpha=3.0, beta=1.0, gamma=4.0):
    best, mean = min(accuracy), sum(accuracy) / len(accuracy)
    adp = step(best / (1 - best + 1e-7), gamma, 1)
    return [1 - step(adp + step((a - best) / (mean - best + 1e-7), gamma, 1), alpha, beta) + 1e-7 for a in accuracy]


def document_score(distance, text, wrote, given, *, simplified=False, digits=4):
    """Means over the readers of one document: DEGRESS, PerSEval, distance."""
    users = [u for u in wrote if u in given]

    def sigma(a, b):
        return round(distance(a, b), digits)

    parts = []
    for texts in (wrote, given):
        between = [[sigma(texts[j], texts[k]) if j != k else 0.0 for k in users] for j in users]
        parts.append(between if simplified else differences(between, [sigma(texts[j], text) for j in users]))
    accuracy = [sigma(wrote[u], given[u]) for u in users]
    d, e = degress(*parts), discount(accuracy)
    n = len(users)
    return sum(d) / n, sum(a * b for a, b in zip(d, e, strict=True)) / n, sum(accuracy) / n
