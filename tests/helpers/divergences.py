"""The convex functions f of the divergences, as they are written."""


def f_alpha(a):
    return lambda x: (x ** (1 - a) - (1 - a) * x - a) / (a * (a - 1))


F = {
    "reverse_kl": lambda x: x * x.log(),
    "forward_kl": lambda x: -x.log(),
    "jensen_shannon": lambda x: x * x.log() - (x + 1) * ((x + 1) / 2).log(),
    "alpha": f_alpha(0.5),
    "squared_hellinger": lambda x: (x.sqrt() - 1) ** 2,
    "jeffreys": lambda x: (x - 1) * x.log(),
    "neyman_chi2": lambda x: (1 - x) ** 2 / x,
    "chi_po": lambda x: x * x.log() + (x - 1) ** 2 / 2,
}
