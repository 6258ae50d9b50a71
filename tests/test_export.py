"""Exported models: they compute what the estimator does, and are nobody else's."""

import copy
import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import (
    HuberRegressor,
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC

from skpeft import AdapterClassifier, AdapterRegressor
from skpeft._export import linear_map
from skpeft.adapters import (
    IA3,
    BitFit,
    Bottleneck,
    LadderSide,
    LayerNormTuning,
    LoRA,
    Prefix,
)
from skpeft.encoders import FAMILIES as KNOWN
from skpeft.encoders import ArrayEncoder, TextEncoder
from tests import models

TEXTS, PAIRS = models.TEXTS, models.PAIRS
NUMBERS = np.random.RandomState(0).randn(len(TEXTS), 3)
CLASSES = ["a", "b", "c", "a", "b", "c", "a"]
FAMILIES = ("bert", "mpnet", "distilbert", "roberta", "xlm-roberta")
BOTH = ("attention_output", "ffn_out")
THAT_STAY = [LoRA(4), BitFit(), Prefix(3), LadderSide(8)]
DYNAMIC = torch.export.Dim.DYNAMIC


def fit(encoder, X=TEXTS, y=CLASSES, *, kind=AdapterClassifier, **parameters):
    parameters = {"adapter": "lora", "shrinkage": 0.0, **parameters}
    return kind(encoder, max_epochs=3, random_state=0, **parameters).fit(X, y)


def frozen_bits(estimator):
    module = estimator._network.live.backbone.module
    return {name: t.clone() for name, t in module.state_dict().items()}


def assert_same_features(model, clf, texts=TEXTS):
    np.testing.assert_allclose(model.encode(texts), clf.transform(texts), atol=1e-5)


@pytest.fixture(scope="module", params=sorted(KNOWN))
def family_folder(request, plain_folder):
    return str(plain_folder(request.param))


# SentenceTransformer


@pytest.mark.parametrize("adapter", [LoRA(4), THAT_STAY], ids=["merged", "stay"])
def test_encode_equals_transform(family_folder, adapter):
    clf = fit(family_folder, adapter=adapter)
    frozen = fit(family_folder, adapter=None)
    assert np.abs(clf.transform(TEXTS) - frozen.transform(TEXTS)).max() > 1e-3
    assert_same_features(clf.to_sentence_transformer(), clf)


def test_encode_equals_transform_for_many_texts_of_all_lengths(plain_folder):
    clf = fit(str(plain_folder("bert")))
    words = np.random.RandomState(0).choice(models.WORDS, (100, 40))
    texts = [" ".join(row[: i % 40]) for i, row in enumerate(words)]
    assert_same_features(clf.to_sentence_transformer(), clf, texts)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 5},
        {"pooling": "cls"},
        {"pooling": "lasttoken"},
        {"prompt": "query: "},
        {"prompt": "Query: ", "max_length": 6, "pooling": "max"},
    ],
    ids=str,
)
def test_encode_follows_the_options_of_the_encoder(plain_folder, options):
    folder = str(plain_folder("bert"))
    clf = fit(TextEncoder(folder, **options))
    assert np.abs(clf.transform(TEXTS) - fit(folder).transform(TEXTS)).max() > 1e-3
    assert_same_features(clf.to_sentence_transformer(), clf)


@pytest.mark.parametrize("prompt", [None, "", "passage: "])
def test_encode_follows_a_loaded_model(plain_folder, prompt):
    own = models.with_pooling(
        plain_folder("bert"),
        prompts={"query": "Query: "},
        default_prompt_name="query",
        truncate_dim=10,
        similarity_fn_name="dot",
    )
    own[0].do_lower_case = True
    own[1].include_prompt = False
    own.max_seq_length = 12
    clf = fit(TextEncoder(own, prompt=prompt), adapter=THAT_STAY)
    model = clf.to_sentence_transformer()
    assert_same_features(model, clf)
    assert model.encode(TEXTS).shape[1] == 10
    assert model.similarity_fn_name == "dot"
    assert (own.max_seq_length, own.prompts["query"]) == (12, "Query: ")


def test_folder_of_merged_model_is_read_by_the_library_alone(plain_folder, tmp_path):
    clf = fit(TextEncoder(str(plain_folder("mpnet")), prompt="query: ", max_length=9))
    clf.to_sentence_transformer().save(str(tmp_path / "model"))
    assert_same_features(models.load(tmp_path / "model"), clf)


def test_folder_of_fully_trained_model_is_read_by_the_library(plain_folder, tmp_path):
    clf = fit(str(plain_folder("bert")), adapter="full")
    clf.to_sentence_transformer().save(str(tmp_path / "model"))
    assert_same_features(models.load(tmp_path / "model"), clf)


@pytest.mark.parametrize(
    "adapter",
    [Bottleneck(4, placement="parallel"), Prefix(3), LadderSide(8), THAT_STAY],
    ids=str,
)
def test_model_with_submodules_is_pickled_and_refuses_a_folder(
    plain_folder, tmp_path, adapter
):
    clf = fit(str(plain_folder("bert")), adapter=adapter)
    model = clf.to_sentence_transformer()
    joblib.dump(model, tmp_path / "model.joblib")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        joblib.load(tmp_path / "model.joblib"),
        torch.load(file, weights_only=False),
    ):
        assert_same_features(other, clf)
    with pytest.raises(ValueError, match=r"cannot be merged.*torch\.save"):
        model.save(str(tmp_path / "model"))


def test_export_of_a_loaded_estimator_is_the_same(plain_folder):
    clf = fit(str(plain_folder("bert")), adapter=THAT_STAY)
    loaded = pickle.loads(pickle.dumps(clf))
    assert_same_features(loaded.to_sentence_transformer(), clf)
    assert_same_features(loaded.to_sentence_transformer(), loaded)


@pytest.mark.parametrize("adapter", [None, LoRA(4), THAT_STAY, "full"], ids=str)
def test_export_can_be_trained_and_halved_and_the_estimator_stays(
    plain_folder, adapter
):
    own = models.with_pooling(plain_folder("bert"), normalize=False)
    clf = fit(own, adapter=adapter)
    expected, bits = clf.predict_proba(TEXTS), frozen_bits(clf)
    tokens = own[0].tokenizer(TEXTS)["input_ids"]
    model, module = clf.to_sentence_transformer(), clf.to_torch()
    batch = models.tokenize(model, TEXTS)
    model.train()(batch)["sentence_embedding"].square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    module.requires_grad_(True)(**module.prepare(TEXTS)).sum().backward()
    torch.optim.SGD(module.parameters(), 0.1).step()
    model.half(), module.half()
    model.max_seq_length = 3
    model[1].include_prompt = False
    assert np.abs(clf.to_sentence_transformer().encode(TEXTS)).max() > 0
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), expected)
    after = frozen_bits(clf)
    assert all(torch.equal(after[name], bits[name]) for name in bits)
    assert own[0].tokenizer(TEXTS)["input_ids"] == tokens


def test_estimator_in_float64_is_exported_in_float32(plain_folder):
    clf = fit(str(plain_folder("bert")), precision="float64")
    model, module = clf.to_sentence_transformer(), clf.to_torch()
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    assert_same_features(model, clf)
    found = module(**module.prepare(TEXTS))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, clf.decision_function(TEXTS), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_export_is_in_float32_whatever_torch_makes_by_default(dtype):
    clf, former = fit("tiny"), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = clf.to_torch()
        found = module(**module.prepare(TEXTS))
    finally:
        torch.set_default_dtype(former)
    assert {t.dtype for t in module.parameters()} == {torch.float32}
    np.testing.assert_allclose(found, clf.decision_function(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "X"), [("tiny", TEXTS), (ArrayEncoder(), NUMBERS)], ids=str
)
def test_sentence_transformer_of_another_encoder_is_refused(encoder, X):
    clf = fit(encoder, X)
    with pytest.raises(ValueError, match=r"is no TextEncoder.*Use to_torch"):
        clf.to_sentence_transformer()


def test_sentence_transformer_of_pairs_is_refused(plain_folder):
    clf = fit(str(plain_folder("bert")), PAIRS)
    with pytest.raises(ValueError, match=r"pairs of texts.*Use to_torch"):
        clf.to_sentence_transformer()


def test_estimator_whose_encoder_was_trained_since_is_refused(plain_folder):
    own = models.with_pooling(plain_folder("bert"))
    clf = fit(own)
    with torch.no_grad():
        next(own.parameters()).add_(1.0)
    for export in (clf.to_sentence_transformer, clf.to_torch):
        with pytest.raises(RuntimeError, match="changed in place after fit"):
            export()


@pytest.mark.parametrize("name", ["to_sentence_transformer", "to_torch"])
def test_estimator_that_is_not_fitted_is_refused(name):
    with pytest.raises(ValueError, match="not fitted"):
        getattr(AdapterClassifier("tiny"), name)()


# One module


CASES = {
    "bi": lambda folder: (TextEncoder(folder), PAIRS),
    "cross": lambda folder: (TextEncoder(folder, pair="cross"), PAIRS),
    "options": lambda folder: (
        TextEncoder(folder, pooling="lasttoken", prompt="query: ", max_length=9),
        TEXTS,
    ),
    "tiny": lambda folder: ("tiny", TEXTS),
    "array": lambda folder: (ArrayEncoder(), NUMBERS),
}


@pytest.fixture
def case(request, plain_folder):
    """Encoder and samples."""
    if request.param in FAMILIES:
        return str(plain_folder(request.param)), TEXTS
    return CASES[request.param](str(plain_folder("bert")))


def each_case(*slow):
    """Every case with adapters that stay, and one with an adapter that merges."""
    pairs = [("bert", LoRA(4)), *((name, THAT_STAY) for name in [*FAMILIES, *CASES])]
    return pytest.mark.parametrize(
        ("case", "adapter"),
        [
            pytest.param(
                name,
                adapter,
                marks=[pytest.mark.slow] if name in slow else [],
                id=f"{name}-{'merged' if i == 0 else 'stay'}",
            )
            for i, (name, adapter) in enumerate(pairs)
        ],
        indirect=["case"],
    )


def dynamic(batch):
    """Batch size and number of tokens may be other ones later."""
    return {
        name: {0: DYNAMIC} if name == "values" else {0: DYNAMIC, 1: DYNAMIC}
        for name in batch
    }


@each_case()
def test_module_equals_decision_function(case, adapter):
    encoder, X = case
    clf = fit(encoder, X, adapter=adapter)
    module = clf.to_torch()
    for other in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        found = other(**other.prepare(X)).numpy()
        np.testing.assert_allclose(found, clf.decision_function(X), atol=1e-5)


def test_module_gives_one_number_for_two_classes_and_for_numbers():
    clf = fit("tiny", y=list("abaabab"))
    reg = fit("tiny", y=np.arange(7.0), kind=AdapterRegressor)
    for estimator, expected in (
        (clf, clf.decision_function(TEXTS)),
        (reg, reg.predict(TEXTS)),
    ):
        module = estimator.to_torch()
        found = module(**module.prepare(TEXTS)).numpy()
        assert found.shape == expected.shape == (len(TEXTS),)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@each_case()
def test_exported_program_takes_other_batches(case, adapter):
    encoder, X = case
    clf = fit(encoder, X, adapter=adapter)
    module = clf.to_torch()
    batch = module.prepare(X)
    program = torch.export.export(module, (), batch, dynamic_shapes=dynamic(batch))
    for rows in (X[:2], X[3:6]):
        found = program.module()(**module.prepare(rows)).numpy()
        np.testing.assert_allclose(found, clf.decision_function(rows), atol=1e-5)


@each_case("roberta", "xlm-roberta", "bi")
def test_onnx_file_gives_the_same_answers(case, adapter, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder, X = case
    clf = fit(encoder, X, adapter=adapter)
    module = clf.to_torch()
    batch, file = module.prepare(X), tmp_path / "model.onnx"
    torch.onnx.export(
        module,
        kwargs=batch,
        f=file,
        dynamo=True,
        dynamic_shapes=dynamic(batch),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file)
    assert [part.name for part in session.get_inputs()] == list(batch)
    for rows in (X, X[:2], X[3:4]):
        parts = {name: t.numpy() for name, t in module.prepare(rows).items()}
        found = session.run(None, parts)[0]
        np.testing.assert_allclose(found, clf.decision_function(rows), atol=1e-5)


# Heads


def features(n_classes=3):
    random_state = np.random.RandomState(0)
    X = random_state.randn(60, 6).astype(np.float32)
    return X, np.argmax(X[:, :n_classes] + 0.5 * random_state.randn(60, n_classes), 1)


LINEAR = [
    LogisticRegression(),
    RidgeClassifier(),
    SGDClassifier(random_state=0),
    LinearSVC(),
    make_pipeline(StandardScaler(), LogisticRegression()),
]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("head", LINEAR, ids=str)
def test_map_of_linear_classifier_is_its_decision_function(head, n_classes):
    X, y = features(n_classes)
    head = head.fit(X, y)
    found = linear_map(head, "decision_function", X.shape[1])
    expected = head.decision_function(X)
    assert found.one_column == (n_classes == 2)
    outputs = found.layer(torch.device("cpu"))(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(outputs.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(
    "head",
    [Ridge(), LinearRegression(), HuberRegressor(), SVR(kernel="linear")],
    ids=str,
)
def test_map_of_linear_regressor_is_its_prediction(head):
    X, _ = features()
    head = head.fit(X, X[:, 0] * 3.0 + 100.0)
    found = linear_map(head, "predict", X.shape[1])
    np.testing.assert_allclose(
        X @ found.weight[0] + found.intercept[0], head.predict(X), atol=1e-5
    )


@pytest.mark.parametrize(
    ("head", "kind", "reason"),
    [
        (SVC(), AdapterClassifier, "decision_function that is not linear"),
        (KNeighborsClassifier(2), AdapterClassifier, "has no decision_function"),
        (RandomForestClassifier(5), AdapterClassifier, "has no decision_function"),
        (GaussianNB(), AdapterClassifier, "has no decision_function"),
        (KNeighborsRegressor(2), AdapterRegressor, "predict that is not linear"),
        (RandomForestRegressor(5), AdapterRegressor, "predict that is not linear"),
        (SVR(), AdapterRegressor, "predict that is not linear"),
    ],
    ids=str,
)
def test_head_that_is_not_linear_is_refused_by_name(head, kind, reason):
    y = CLASSES if kind is AdapterClassifier else np.arange(7.0)
    name = type(head).__name__
    with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
        fit("tiny", y=y, kind=kind, head=head).to_torch()


def test_temperature_of_the_default_head_is_in_the_module():
    clf = AdapterClassifier("tiny", adapter=LayerNormTuning(), random_state=0)
    clf.fit(TEXTS * 3, CLASSES * 3)
    assert clf.temperature_ != 1.0
    module = clf.to_torch()
    found = module(**module.prepare(TEXTS)).softmax(dim=1)
    np.testing.assert_allclose(found, clf.predict_proba(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "X", "kind", "message"),
    [
        ("tiny", "good", TypeError, r"single str.*pass a list of one"),
        ("tiny", [], ValueError, "minimum of 1 is required"),
        ("tiny", [1.0, 2.0], ValueError, "every entry must be a str"),
        ("array", [], ValueError, "Expected 2D array"),
        ("array", np.ones((0, 3)), ValueError, "minimum of 1 is required"),
        ("array", ["good"], ValueError, "Expected 2D array"),
    ],
    ids=str,
)
def test_prepare_refuses_what_fit_refuses(encoder, X, kind, message):
    clf = fit(encoder, TEXTS if encoder == "tiny" else NUMBERS, adapter=None)
    with pytest.raises(kind, match=message):
        clf.to_torch().prepare(X)


def test_prepare_takes_frames_as_fit_does():
    frame = pd.DataFrame({"text": TEXTS}, index=range(7, 0, -1))
    clf = fit("tiny", frame)
    module = clf.to_torch()
    for X in (frame, frame["text"], np.array(TEXTS)[:, None]):
        found = module(**module.prepare(X)).numpy()
        np.testing.assert_allclose(found, clf.decision_function(frame), atol=1e-5)


def test_layers_around_one_that_does_not_merge_stay_too():
    adapters = [Bottleneck(4), LoRA(2, roles=["ffn_out"]), IA3(roles=BOTH)]
    clf = fit("tiny", adapter=adapters, learning_rate=1e-2)
    module = clf.to_torch()
    found = module(**module.prepare(TEXTS)).numpy()
    np.testing.assert_allclose(found, clf.decision_function(TEXTS), atol=1e-5)
