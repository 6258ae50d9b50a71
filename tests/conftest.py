"""Where tests run, and tiny models that several test modules share."""

import functools
import os

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--cuda",
        action="store_true",
        help="let tests see the GPU, for tests/test_cuda.py",
    )


def pytest_configure(config):
    """Hide GPUs, from processes that tests start too: a CPU's results are expected."""
    if not config.getoption("--cuda"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory):
    """Make, once a session, the folder of a tiny transformers model of a family."""

    @functools.cache
    def make(family="bert", seed=0):
        from tests import models

        folder = tmp_path_factory.mktemp("models") / f"{family}-{seed}"
        return models.save_plain(folder, family, seed)

    return make


@pytest.fixture(scope="session")
def pooled_folder(tmp_path_factory, plain_folder):
    """Make, once a session, a sentence-transformers folder: pooling and scaling too."""

    @functools.cache
    def make(family="bert", pooling="cls", seed=0):
        from tests import models

        folder = tmp_path_factory.mktemp("pooled") / f"{family}-{pooling}-{seed}"
        model = models.with_pooling(plain_folder(family, seed), pooling=pooling)
        model.save(str(folder), create_model_card=False)
        return folder

    return make
