"""How the estimators show themselves, and what they tell scikit-learn about themselves."""

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

import skpeft
from skpeft import AdapterClassifier, AdapterRegressor
from skpeft.adapters import LoRA

TEXTS = ["good film", "bad film", "good book", "bad book"]
OPTIONS = {"max_epochs": 1, "shrinkage": 0.0, "random_state": 0}
KINDS = {
    AdapterClassifier: ["+", "-", "+", "-"],
    AdapterRegressor: [1.0, 0.0, 1.0, 0.0],
}


def html(estimator):
    return estimator._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize("kind", KINDS)
def test_html_of_a_fitted_estimator_tells_what_was_trained(kind):
    est = kind("tiny", adapter=LoRA(rank=3), device="cpu", **OPTIONS)
    assert "weights trained" not in html(est)
    est.fit(TEXTS, KINDS[kind])
    # Two blocks from the first on; query and value; rank 3; 32 in and 32 out.
    trained = 2 * 2 * 3 * (32 + 32)
    whole = trained + est.n_frozen_params_
    share = f"{100 * trained / whole:.2f}%"
    line = (
        f"{trained:,} of {whole:,} weights trained ({share}), head not counted, on cpu"
    )
    assert line in html(est)
    assert line in html(make_pipeline(FunctionTransformer(), est))


def test_html_of_a_loaded_estimator_needs_no_encoder(tmp_path):
    AdapterClassifier("tiny", **OPTIONS).fit(TEXTS, ["+", "-"] * 2).save_pretrained(
        tmp_path / "saved"
    )
    loaded = AdapterClassifier.from_pretrained(tmp_path / "saved")
    skpeft.clear_cache()
    assert "weights trained" in html(loaded)
    assert loaded._network._live is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_transform_gives_the_frame_that_was_asked_for(kind, library):
    module = pytest.importorskip(library)
    est = kind("tiny", **OPTIONS).set_output(transform=library)
    frame = est.fit(TEXTS, KINDS[kind]).transform(TEXTS)
    assert isinstance(frame, module.DataFrame)
    names = [f"{kind.__name__.lower()}{i}" for i in range(32)]
    assert list(frame.columns) == names
    assert list(est.get_feature_names_out()) == names
    plain = est.set_output(transform="default").transform(TEXTS)
    np.testing.assert_array_equal(frame.to_numpy(), plain)


def test_output_of_pandas_keeps_the_index_of_the_rows():
    frame = pd.DataFrame({"text": TEXTS}, index=[5, 3, 8, 1])
    clf = AdapterClassifier("tiny", **OPTIONS).set_output(transform="pandas")
    assert list(clf.fit(frame, ["+", "-"] * 2).transform(frame).index) == [5, 3, 8, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_tags_tell_what_is_read_and_what_is_needed(kind):
    text, numbers = (
        get_tags(kind(encoder)).input_tags for encoder in ("tiny", "array")
    )
    assert text.string
    assert text.one_d_array
    assert not text.two_d_array
    assert numbers.two_d_array
    assert not numbers.string
    assert not numbers.sparse
    tags = get_tags(kind("tiny"))
    assert tags.target_tags.required
    assert tags.requires_fit
    expected = "classifier" if kind is AdapterClassifier else "regressor"
    assert tags.estimator_type == expected


@pytest.mark.parametrize("kind", KINDS)
def test_estimator_knows_whether_it_is_fitted(kind):
    est = kind("tiny", **OPTIONS)
    with pytest.raises(NotFittedError):
        check_is_fitted(est)
    check_is_fitted(est.fit(TEXTS, KINDS[kind]))
