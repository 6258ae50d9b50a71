"""Tiny models that several test modules share."""

import functools

import pytest


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
