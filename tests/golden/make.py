"""Write the golden folders of the current format, which later versions must still read.

Run once for each format, from the root of the repository: python -m tests.golden.make
The folders of earlier formats stay as they are.
"""

import json
from pathlib import Path

import numpy as np

from skpeft import AdapterClassifier, AdapterRegressor
from skpeft._folder import FORMAT
from skpeft.adapters import Bottleneck, LoRA

TEXTS = [f"{word} {thing}" for word in ("good", "bad", "odd") for thing in "abcdef"]
NEW = ["good film", "a bad odd film", ""]


def main():
    """Fit two small models, save them, and write what they predict beside them."""
    place = Path(__file__).parent / str(FORMAT)
    options = {"encoder": "tiny", "max_epochs": 3, "random_state": 0, "device": "cpu"}
    clf = AdapterClassifier(adapter=LoRA(2, dropout=0.1), **options)
    clf.fit(TEXTS, np.repeat(["+", "-", "ß"], 6))
    reg = AdapterRegressor(adapter=Bottleneck(2), layers=1, **options)
    reg.fit(TEXTS, np.arange(18.0))
    expected = {
        "classifier": {
            "output": clf.predict_proba(NEW).tolist(),
            "classes": clf.classes_.tolist(),
        },
        "regressor": {"output": reg.predict(NEW).tolist(), "classes": None},
    }
    clf.save_pretrained(place / "classifier")
    reg.save_pretrained(place / "regressor")
    text = json.dumps({"X": NEW, **expected}, indent=1)
    (place / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
