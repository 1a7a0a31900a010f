from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from unmask import PPOTS, Bell, Beta, Clipped, IndependentMasking, ProgressiveUnmasking, Uniform
from unmask.fitted_times import RunningTime, is_fitted, started
from unmask.processes.ppots import Tabulated
from unmask.times import TimeDistribution, check_law

TIMES = [
    Uniform(),
    Bell(),
    Bell(mean=0.9, std=0.3),
    Bell(mean=-0.2, std=0.4),
    Beta(),
    Beta(a=1.0, b=1.0),
    Beta(a=3.0, b=1.5),
    Beta(a=0.7, b=0.6),
    Clipped(),
    Clipped(low=0.0, high=1.0),
]
INSIDE = st.floats(1e-6, 1 - 1e-6)
each = pytest.mark.parametrize("time", TIMES, ids=repr)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


@each
@given(u=INSIDE)
@settings(max_examples=30, deadline=None)
def test_quantile_inverts_the_cdf(time, u):
    t = time.quantile(scalar(u))
    low, high = time.support
    assert low < t <= high
    assert float(time.cdf(t)) == pytest.approx(u, abs=1e-9)


@each
@given(u=st.floats(1e-3, 1 - 1e-3))
@settings(max_examples=30, deadline=None)
def test_cdf_inverts_the_quantile(time, u):
    t = time.quantile(scalar(u))
    assert float(time.quantile(time.cdf(t))) == pytest.approx(float(t), abs=1e-8)


@each
@given(u=st.floats(0.02, 0.98))
@settings(max_examples=30, deadline=None)
def test_density_is_the_derivative_of_the_cdf(time, u):
    t = float(time.quantile(scalar(u)))
    step = 1e-5
    slope = float(time.cdf(scalar(t + step)) - time.cdf(scalar(t - step))) / (2 * step)
    assert float(time.density(scalar(t))) == pytest.approx(slope, rel=1e-4)


@each
def test_density_integrates_to_one(time):
    low, high = time.support
    mass, _ = quad(lambda t: float(time.density(scalar(t))), low, high, limit=200)
    assert mass == pytest.approx(1, abs=1e-6)


@each
def test_cdf_rises_from_zero_to_one_over_the_support(time):
    low, high = time.support
    grid = torch.linspace(low, high, 201, dtype=torch.float64)
    values = time.cdf(grid)
    assert float(values[0]) == pytest.approx(0, abs=1e-12)
    assert float(values[-1]) == pytest.approx(1, abs=1e-12)
    assert (values.diff() > 0).all()
    outside = time.cdf(torch.tensor([low - 0.1, high + 0.1], dtype=torch.float64))
    assert outside.tolist() == pytest.approx([0, 1])


@each
def test_rates_drawn_from_the_smallest_and_largest_uniforms_are_positive_and_at_most_one(time):
    t = time.quantile(torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64))
    assert (t > 0).all()
    assert (t <= 1).all()
    assert (time.density(t) > 0).all()


@each
def test_functions_keep_shape_and_double_precision(time):
    u = torch.rand(2, 3, dtype=torch.float64)
    for values in (time.quantile(u), time.cdf(u), time.density(u)):
        assert values.shape == u.shape
        assert values.dtype == torch.float64


def test_a_beta_shape_of_one_has_a_finite_density_at_its_end():
    assert float(Beta(a=3.0, b=1.0).density(scalar(1.0))) == pytest.approx(3)
    assert float(Beta(a=1.0, b=1.0).density(scalar(1.0))) == pytest.approx(1)


def test_beta_of_one_and_one_is_uniform_and_bell_is_symmetric_about_its_middle():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert torch.allclose(Beta(1, 1).cdf(t), Uniform().cdf(t), atol=1e-12)
    assert torch.allclose(Bell().cdf(t) + Bell().cdf(1 - t), torch.ones_like(t), atol=1e-12)
    assert torch.allclose(Bell().density(t), Bell().density(t.flip(0)), atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bell(std=0),
        lambda: Bell(std=-1),
        lambda: Bell(std=float("nan")),
        lambda: Bell(mean=9),
        lambda: Bell(mean=-9),
        lambda: Beta(a=0),
        lambda: Beta(b=-1),
        lambda: Beta(a=float("nan")),
        lambda: Clipped(low=-0.1),
        lambda: Clipped(high=1.1),
        lambda: Clipped(low=0.5, high=0.5),
        lambda: Clipped(low=0.8, high=0.3),
    ],
)
def test_bad_parameters_are_refused_by_name(make):
    with pytest.raises(ValueError, match=r"Bell|Beta|Clipped"):
        make()


@each
def test_a_law_runs_as_it_is_and_one_to_be_fitted_is_started(time):
    assert started(time) is time
    running = started(PPOTS())
    assert isinstance(running, RunningTime)
    assert started(running) is running
    assert is_fitted(running)
    assert is_fitted(PPOTS())
    assert not is_fitted(time)


SHAPES = [0.01, 0.05, 0.2, 0.5, 1.0, 30.0, 1e4]


@dataclass(frozen=True)
class Own(TimeDistribution):
    """Rates u², of the density 1 / (2 √t), unless one function is said to be another's."""

    wrong: str = ""

    def cdf(self, t):
        return t if self.wrong == "cdf" else t.sqrt()

    def quantile(self, u):
        return {"rate": 1.2 * u**2, "shape": u[:3], "nan": (u - 0.5).sqrt()}.get(self.wrong, u**2)

    def density(self, t):
        wrong = {"density": 0.4 / t.sqrt(), "tilted": 3 * t**2, "infinite": 1 / (t - t)}
        return wrong.get(self.wrong, 0.5 / t.sqrt())


@pytest.mark.parametrize("process", [IndependentMasking, ProgressiveUnmasking])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("rate", r"quantile\(0\.998\) is 1\.2, which is no rate in \[0, 1\]"),
        ("nan", r"is nan, which is no rate in \[0, 1\]"),
        ("shape", r"quantile makes \(3,\) rates of \(256,\) levels"),
        ("cdf", r"quantile\(0\.\d+\) is (0\.\d+), and cdf of that is \1: they are not of one law"),
        ("density", r"mass of 0\.747 and the cdf one of 0\.934.*weights would be of another law"),
        ("tilted", "weights would be of another law"),
        ("infinite", "weights would be of another law"),
    ],
)
def test_a_law_whose_functions_contradict_one_another_is_refused_when_it_is_given(process, wrong, said):
    process(time=Own())
    with pytest.raises(ValueError, match=said):
        process(time=Own(wrong))


@pytest.mark.parametrize("time", [*TIMES, *(Beta(a, b) for a in SHAPES for b in SHAPES)], ids=repr)
def test_the_laws_of_the_library_are_of_one_law(time):
    """Those of which a float rounds many rates to an end too: the quantile of Beta(.2, 1) at 1/512 is 3e-14."""
    check_law(time)


@given(mass=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=300))
@settings(max_examples=50, deadline=None)
def test_tabulated_laws_are_of_one_law(mass):
    check_law(Tabulated(torch.tensor(mass)))


def test_quadrature_splits_where_a_clipped_density_begins_and_ends():
    assert Clipped(0.3, 0.8).breakpoints == (0.3, 0.8)
    assert Clipped(0.0, 0.8).breakpoints == (0.8,)
    assert Clipped(0.0, 1.0).breakpoints == ()
