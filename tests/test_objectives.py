"""Objectives against independent computations and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.special import huber
from sklearn.metrics import log_loss, mean_squared_error

from skpeft.objectives import (
    OBJECTIVES,
    BinaryCrossEntropy,
    Contrastive,
    CrossEntropy,
    Huber,
    LabelContrastive,
    Objective,
    SquaredError,
    resolve_objective,
)

N_ROWS, DIM, N_CLASSES = 9, 5, 3
CLASSES = torch.tensor([0, 1, 1, 2, 0, 1, 2, 2, 0])
# Of three labels each row; one row has none, and one has what no other has.
LABELS = torch.tensor(
    [
        *([1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0]),
        *([0, 1, 0], [0, 0, 1], [1, 1, 0]),
    ],
    dtype=torch.float64,
)

# One row a new objective.
TABLE = [
    Contrastive(),
    Contrastive(temperature=0.7),
    LabelContrastive(),
    LabelContrastive(temperature=0.7),
    CrossEntropy(),
    BinaryCrossEntropy(),
    SquaredError(),
    Huber(),
    Huber(delta=0.3),
]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def outputs_and_targets(objective, n_rows=N_ROWS):
    """Outputs that need a gradient, and targets, as the training step gives them."""
    if objective.task == "regression":
        outputs, targets = normal(n_rows, 1), normal(n_rows, seed=1)
    elif objective.task == "multi-label classification":
        width = N_CLASSES if objective.needs_predictions else DIM
        outputs, targets = normal(n_rows, width), LABELS[:n_rows]
    else:
        width = N_CLASSES if objective.needs_predictions else DIM
        outputs, targets = normal(n_rows, width), CLASSES[:n_rows]
    return outputs.requires_grad_(), targets


def test_table_has_a_row_for_every_registered_objective():
    assert {type(objective) for objective in TABLE} == set(OBJECTIVES.values())


@pytest.mark.parametrize("objective", TABLE, ids=str)
def test_value_is_one_number_a_row(objective):
    outputs, targets = outputs_and_targets(objective)
    values = objective.value(outputs, targets)
    assert values.shape == (N_ROWS,)
    assert values.dtype == outputs.dtype
    assert (values >= 0).all()


@pytest.mark.parametrize("objective", TABLE, ids=str)
def test_gradient_equals_finite_differences(objective):
    outputs, targets = outputs_and_targets(objective)
    assert torch.autograd.gradcheck(lambda x: objective.value(x, targets), outputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", TABLE, ids=str)
def test_value_and_gradient_of_one_row_are_finite(objective, dtype):
    outputs, targets = outputs_and_targets(objective, n_rows=1)
    outputs = outputs.detach().to(dtype).requires_grad_()
    if targets.is_floating_point():
        targets = targets.to(dtype)
    value = objective.value(outputs, targets)
    value.sum().backward()
    assert value.shape == (1,)
    assert torch.isfinite(value).all()
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("objective", TABLE, ids=str)
def test_value_and_gradient_of_zero_outputs_are_finite(objective):
    outputs, targets = outputs_and_targets(objective)
    outputs = torch.zeros_like(outputs).requires_grad_()
    value = objective.value(outputs, targets)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("objective", TABLE, ids=str)
def test_values_move_with_the_rows(objective):
    outputs, targets = outputs_and_targets(objective)
    order = torch.from_numpy(np.random.RandomState(0).permutation(N_ROWS))
    moved = objective.value(outputs[order], targets[order])
    torch.testing.assert_close(moved, objective.value(outputs, targets)[order])


def contrastive_by_hand(features, classes, temperature):
    """The formula, pair by pair."""
    unit = [[x / math.hypot(*row) for x in row] for row in features]
    alike = lambda i, j: sum(map(math.prod, zip(unit[i], unit[j], strict=True)))
    values = []
    for i in range(len(unit)):
        others = [a for a in range(len(unit)) if a != i]
        total = sum(math.exp(alike(i, a) / temperature) for a in others)
        terms = [
            math.log(total) - alike(i, p) / temperature
            for p in others
            if classes[p] == classes[i]
        ]
        values.append(sum(terms) / len(terms) if terms else 0.0)
    return values


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(
    "classes",
    [CLASSES.tolist(), [0] * N_ROWS, [0, 1, 1, 2, 3, 4, 1, 2, 2], list(range(N_ROWS))],
    ids=["balanced", "one class", "some alone", "all alone"],
)
def test_contrastive_equals_the_double_loop(classes, temperature):
    features = normal(N_ROWS, DIM)
    found = Contrastive(temperature).value(features, torch.tensor(classes))
    expected = contrastive_by_hand(features.tolist(), classes, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_contrastive_does_not_depend_on_the_length_of_features():
    features = normal(N_ROWS, DIM)
    lengths = torch.arange(1.0, N_ROWS + 1, dtype=torch.float64)[:, None]
    objective = Contrastive()
    torch.testing.assert_close(
        objective.value(features * lengths, CLASSES), objective.value(features, CLASSES)
    )


def test_contrastive_of_a_row_alone_in_its_class_is_zero_with_finite_gradient():
    features = normal(4, DIM).requires_grad_()
    values = Contrastive().value(features, torch.tensor([0, 0, 1, 2]))
    assert values[2:].tolist() == [0.0, 0.0]
    values[2:].sum().backward()
    assert not features.grad.any()


def test_contrastive_at_a_low_temperature_is_finite():
    features = normal(N_ROWS, DIM).float().requires_grad_()
    values = Contrastive(temperature=1e-3).value(features, CLASSES)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(features.grad).all()


def test_cross_entropy_equals_log_loss():
    outputs, targets = outputs_and_targets(CrossEntropy())
    values = CrossEntropy().value(outputs, targets).detach().numpy()
    probabilities = outputs.softmax(dim=1).detach().numpy()
    for i in range(N_ROWS):
        one = log_loss([targets[i]], probabilities[[i]], labels=range(N_CLASSES))
        assert values[i] == pytest.approx(one)
    assert values.mean() == pytest.approx(log_loss(targets, probabilities))


@pytest.mark.parametrize("temperature", [None, 0.1, 1.0])
def test_label_contrastive_with_one_label_a_row_is_contrastive(temperature):
    features = normal(N_ROWS, DIM)
    one_hot = torch.nn.functional.one_hot(CLASSES).to(torch.float64)
    torch.testing.assert_close(
        LabelContrastive(temperature).value(features, one_hot),
        Contrastive(temperature).value(features, CLASSES),
    )


def test_label_contrastive_equals_the_double_loop_over_sets():
    features = normal(N_ROWS, DIM)
    unit = [[x / math.hypot(*row) for x in row] for row in features.tolist()]
    alike = lambda i, j: sum(map(math.prod, zip(unit[i], unit[j], strict=True))) / 0.3
    sets = [{k for k in range(3) if row[k]} for row in LABELS.tolist()]
    expected = []
    for i, own in enumerate(sets):
        others = [a for a in range(N_ROWS) if a != i]
        total = math.log(sum(math.exp(alike(i, a)) for a in others))
        shares = [len(own & sets[a]) / max(1, len(own | sets[a])) for a in others]
        terms = [s * (total - alike(i, a)) for s, a in zip(shares, others, strict=True)]
        expected.append(sum(terms) / sum(shares) if any(shares) else 0.0)
    found = LabelContrastive(0.3).value(features, LABELS)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    assert found[[3, 7]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_label_contrastive_of_rows_without_labels_is_zero(temperature):
    features = normal(4, DIM).requires_grad_()
    some = torch.tensor([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=torch.float64)
    values = LabelContrastive(temperature).value(features, some)
    assert (values[:2] > 0).all()
    assert values[2:].tolist() == [0.0, 0.0]
    none = LabelContrastive(temperature).value(features, torch.zeros_like(some))
    assert none.tolist() == [0.0] * 4
    (values.sum() + none.sum()).backward()
    assert torch.isfinite(features.grad).all()


def test_binary_cross_entropy_is_the_log_loss_of_sklearn_summed_over_labels():
    outputs, targets = outputs_and_targets(BinaryCrossEntropy())
    found = BinaryCrossEntropy().value(outputs, targets).mean().item()
    shares = torch.sigmoid(outputs).detach().numpy()
    columns = zip(targets.numpy().T, shares.T, strict=True)
    assert found == pytest.approx(sum(log_loss(y, p) for y, p in columns))


@pytest.mark.parametrize("objective", [SquaredError(), Huber(), Huber(0.3)], ids=str)
def test_value_of_several_numbers_is_the_mean_of_their_values(objective):
    outputs, targets = normal(N_ROWS, 3), normal(N_ROWS, 3, seed=1)
    alone = [objective.value(outputs[:, [i]], targets[:, i]) for i in range(3)]
    torch.testing.assert_close(
        objective.value(outputs, targets), torch.stack(alone).mean(dim=0)
    )


def test_squared_error_is_half_of_that_of_sklearn():
    outputs, targets = outputs_and_targets(SquaredError())
    values = SquaredError().value(outputs, targets).detach().numpy()
    predicted = outputs.detach().numpy()[:, 0]
    np.testing.assert_allclose(values, (predicted - targets.numpy()) ** 2 / 2)
    assert values.mean() == pytest.approx(mean_squared_error(targets, predicted) / 2)


@pytest.mark.parametrize("delta", [0.2, 1, 5.0])
def test_huber_equals_scipy(delta):
    outputs, targets = outputs_and_targets(Huber())
    values = Huber(delta).value(outputs, targets).detach().numpy()
    expected = huber(delta, outputs.detach().numpy()[:, 0] - targets.numpy())
    np.testing.assert_allclose(values, expected)


def test_huber_near_zero_is_the_squared_error():
    outputs, targets = outputs_and_targets(Huber())
    torch.testing.assert_close(
        Huber(delta=1e3).value(outputs, targets), SquaredError().value(outputs, targets)
    )


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("classification", Contrastive),
        ("multi-label classification", LabelContrastive),
        ("regression", SquaredError),
    ],
)
def test_resolve_objective_auto_chooses_by_task(task, kind):
    assert type(resolve_objective("auto", task)) is kind


def test_resolve_objective_auto_for_pairs_of_texts_does_not_contrast_them():
    assert type(resolve_objective("auto", "classification", pairs=True)) is CrossEntropy
    assert type(resolve_objective("auto", "regression", pairs=True)) is SquaredError
    several = resolve_objective("auto", "multi-label classification", pairs=True)
    assert type(several) is BinaryCrossEntropy


@pytest.mark.parametrize("n_classes", [2, 6, 24])
def test_contrastive_is_sharper_for_many_classes(n_classes):
    features = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(48) % n_classes
    fixed = Contrastive({2: 0.2, 6: 0.2, 24: 0.1}[n_classes])
    torch.testing.assert_close(
        Contrastive().value(features, targets), fixed.value(features, targets)
    )


@pytest.mark.parametrize("kind", OBJECTIVES.values())
def test_default_length_and_pace_are_bounded_and_fall_with_the_rows(kind):
    epochs = [kind().default_epochs(n) for n in (2, 50, 500, 50_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[-1] >= 3
    paces = [kind().learning_rate_factor(n) for n in (1, 6, 50, 5000)]
    assert paces == sorted(paces, reverse=True)
    assert (paces[-1], max(paces) <= 4) == (1.0, True)


def test_default_epochs_show_about_as_many_rows_between_their_bounds():
    for kind, most, n_shown in [(CrossEntropy, 20, 2500), (Contrastive, 6, 1500)]:
        for n_rows in (1, n_shown // most, n_shown // most + 1, 300, n_shown // 4):
            epochs = kind().default_epochs(n_rows)
            assert type(epochs) is int
            if n_rows * most <= n_shown:
                assert epochs == most
            else:
                assert abs(epochs * n_rows - n_shown) <= n_rows / 2
        for n_rows in (n_shown // 3, n_shown, 10**6):
            assert kind().default_epochs(n_rows) == 3


def test_pace_of_contrastive_falls_with_the_root_of_the_steps_from_4_to_1():
    paces = [Contrastive().learning_rate_factor(n) for n in (1, 6, 24, 54, 96, 1000)]
    np.testing.assert_allclose(paces, [4, 4, 4 / 2, 4 / 3, 1, 1])
    assert (
        CrossEntropy().learning_rate_factor(1)
        == SquaredError().learning_rate_factor(6)
        == 1.0
    )


@pytest.mark.parametrize("kind", OBJECTIVES.values())
def test_batches_are_those_of_the_docs(kind):
    contrasts = issubclass(kind, Contrastive)
    assert kind.default_batch_size == (128 if contrasts else 32)
    assert kind.balanced_batches == (kind is Contrastive)
    assert kind.needs_predictions == (not contrasts)


def test_objective_that_says_nothing_sees_features_in_plain_batches_of_32():
    class Bare(Objective):
        task = "regression"

    spec = resolve_objective(Bare(), "regression")
    assert (spec.needs_predictions, spec.balanced_batches) == (False, False)
    assert (spec.default_batch_size, spec.learning_rate_factor(1)) == (32, 1.0)
    with pytest.raises(NotImplementedError):
        spec.value(torch.zeros(1, 1), torch.zeros(1))


@pytest.mark.parametrize("kind", OBJECTIVES.values())
def test_every_parameter_of_an_objective_has_a_constraint(kind):
    assert kind._parameter_constraints.keys() == kind().get_params().keys()


@pytest.mark.parametrize(
    ("kind", "name", "taken"),
    [
        (Contrastive, "temperature", [None, 1e-9, 0.5, 100]),
        (LabelContrastive, "temperature", [None, 1e-9, 0.5, 100]),
        (Huber, "delta", [1e-9, 0.5, 100]),
    ],
)
def test_range_of_a_parameter_is_above_zero(kind, name, taken):
    for value in taken:
        resolve_objective(kind(**{name: value}), kind.task)
    for value in (0, -1, "one"):
        with pytest.raises(ValueError, match=f"'{name}' parameter of {kind.__name__}"):
            resolve_objective(kind(**{name: value}), kind.task)


def test_huber_becomes_linear_at_one_unless_told():
    gaps = torch.tensor([[0.5], [1.0], [1.5], [3.0]], dtype=torch.float64)
    values = Huber().value(gaps, torch.zeros(4, dtype=torch.float64))
    np.testing.assert_allclose(values, huber(1.0, gaps.numpy()[:, 0]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resolve_objective_by_name_gives_its_class(name):
    kind = OBJECTIVES[name]
    assert type(resolve_objective(name, kind.task)) is kind


def test_resolve_objective_copies_a_spec():
    spec = Huber(2.0)
    resolved = resolve_objective(spec, "regression")
    assert resolved is not spec
    assert resolved.delta == 2.0


@pytest.mark.parametrize(
    ("objective", "task", "message"),
    [
        ("contrastiv", "classification", r"'contrastiv' is not .* 'contrastive'\?"),
        ("huber", "classification", r"not a known objective for classification"),
        ("contrastive", "regression", r"expected one of \['auto', 'huber'"),
        (Huber(), "classification", r"Huber\(\) is an objective for regression"),
        (CrossEntropy(), "regression", r"for classification.*Names for regression"),
        (Contrastive(0), "classification", r"'temperature' parameter of Contrastive"),
        (Huber(-1), "regression", r"'delta' parameter of Huber"),
    ],
    ids=str,
)
def test_resolve_objective_refuses_what_does_not_fit(objective, task, message):
    with pytest.raises(ValueError, match=message):
        resolve_objective(objective, task)


@pytest.mark.parametrize("objective", [None, 3, Contrastive, Objective], ids=repr)
def test_resolve_objective_of_something_else_is_a_type_error(objective):
    with pytest.raises(TypeError, match="name or an instance of an objective"):
        resolve_objective(objective, "classification")
