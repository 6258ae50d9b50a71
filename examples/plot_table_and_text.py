"""
A text beside other columns
===========================

Most tables have a column of texts and others of numbers. Here films are told by genre: by the
title, by year, length, language and what critics thought, and by all of it in one model of
scikit-learn.
"""

# %%
# The films are Wikidata's, in the package bokeh-sampledata. Four genres, films of one
# genre alone; lengths are missing here and there.
import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd

package = Path(importlib.util.find_spec("bokeh_sampledata").origin).parent
query = """
    SELECT Title, Year, Runtime, Language, Meter, Reviews, Genre
    FROM omdb JOIN tomatoes USING (ID)
    WHERE Genre IN ('Comedy', 'Documentary', 'Horror', 'Western') ORDER BY ID
"""
with closing(sqlite3.connect(package / "_data" / "movies.db")) as database:
    films = pd.read_sql(query, database)
films["Language"] = films["Language"].fillna("").str.split(",").str[0]
genre = films.pop("Genre")
print(films.groupby(genre).sample(2, random_state=1).to_string(index=False))

# %%
# `AdapterScores` turns the titles into columns of probabilities. Each training row gets them
# from a model that has not seen it; else the logistic regression on top would trust
# the titles blindly.
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skpeft import AdapterClassifier, AdapterScores

titles = AdapterClassifier(layers=2, shrinkage=0.0, random_state=0)
text = (AdapterScores(titles, cv=3, random_state=0), "Title")
numbers = (
    make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
    ["Year", "Runtime", "Meter", "Reviews"],
)
language = (
    OneHotEncoder(min_frequency=5, handle_unknown="infrequent_if_exist"),
    ["Language"],
)
models = {
    "title": (titles, films["Title"]),
    "other columns": (
        make_pipeline(make_column_transformer(numbers, language), LogisticRegression()),
        films,
    ),
    "both": (
        make_pipeline(
            make_column_transformer(text, numbers, language), LogisticRegression()
        ),
        films,
    ),
}

# %%
# 120 films to learn from, 500 others to score, the same for all three.
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

splits = StratifiedShuffleSplit(3, train_size=120, test_size=500, random_state=0)
scores = {
    name: cross_val_score(model, columns, genre, cv=splits)
    for name, (model, columns) in models.items()
}
for name, found in scores.items():
    print(f"{name}: {found.mean():.3f} ± {found.std():.3f}")

# %%
# Each line is one split. A line that rises to the right says that, there, the title
# told something that the other columns do not.
import matplotlib.pyplot as plt
import numpy as np

_, ax = plt.subplots(layout="constrained")
ax.plot(list(scores), np.array(list(scores.values())), "o-", color="#0072B2")
ax.axhline(
    genre.value_counts(normalize=True).max(),
    linestyle=":",
    color=plt.rcParams["text.color"],
    label="always the most frequent genre",
)
ax.set(xlabel="What the model reads", ylabel="Accuracy")
ax.legend()
plt.show()
