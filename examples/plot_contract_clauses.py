"""
Contract clauses, a few of each kind
====================================

Somebody has marked eight clauses of each kind by hand and wants the rest sorted. Forty rows
are few: is it worth to train adapters on them, and how would one know?
"""

# %%
# Five kinds of clauses, written for this example. They share words: notice, payment and
# liability come up in all of them.
CLAUSES = {
    "confidentiality": """
        Each party keeps what it learns about the other's business to itself.
        The Supplier shall not show the Drawings to anyone outside the project team.
        Information that was public before it was disclosed is not covered by this section.
        On request the Recipient returns all copies, or confirms in writing their destruction.
        The duty of secrecy ends five years after the last delivery.
        Staff who need access must first sign an undertaking no weaker than this one.
        If a court orders disclosure, the party concerned warns the other beforehand.
        The Consultant may name the Client as a reference only with its written consent.
    """,
    "data protection": """
        The Processor handles personal data on documented instructions of the Controller alone.
        Customer records are stored within the European Economic Area.
        A breach that affects individuals is reported to the Client within 24 hours.
        Sub-processors are listed in Annex 3; the Client may object to a new one.
        Data subjects' requests are passed on without being answered.
        After the contract ends, all personal data are erased, backups within 90 days.
        The Provider keeps a record of processing and shows it to the authority on request.
        Employee photographs are used for access badges and for nothing else.
    """,
    "liability": """
        Neither party answers for lost profit or other indirect damage.
        The Supplier's total liability in a year is limited to the fees paid in that year.
        Nothing in this agreement limits liability for death or bodily injury.
        The Contractor makes good any damage its workers cause on the site.
        The Client holds the Agency harmless against claims about material it provided.
        Delay caused by flood, strike or war does not give rise to damages.
        The Carrier maintains insurance of at least two million euros per event.
        Claims for defects lapse twelve months after acceptance.
    """,
    "payment": """
        Invoices are due 30 days after receipt, without deduction.
        On late amounts interest runs at eight points above the base rate.
        The Client pays a third on signature, a third on delivery and the rest on acceptance.
        Prices are in Swiss francs and do not include value added tax.
        Travel is reimbursed at cost against receipts, up to the limit in Annex 1.
        The annual fee rises each January with the consumer price index.
        An amount in dispute may be held back until the matter is settled.
        The Tenant lodges a deposit of three months' rent before moving in.
    """,
    "termination": """
        Either side may end this agreement with three months' notice to the end of a quarter.
        If an invoice stays unpaid for 60 days, the Supplier may withdraw at once.
        The contract runs for two years and then renews year by year unless cancelled.
        Insolvency of one party entitles the other to terminate immediately.
        Upon expiry the Licensee stops all use and removes the Software.
        Orders already placed are carried out even if the frame contract has ended.
        Notice must be given in writing; e-mail is not enough.
        A change of control gives the Client the right to step out within six weeks.
    """,
}
pairs = [
    (clause.strip(), kind)
    for kind, clauses in CLAUSES.items()
    for clause in clauses.strip().splitlines()
]
texts, kinds = zip(*pairs, strict=True)
print(f"{len(texts)} clauses of {len(CLAUSES)} kinds")

# %%
# One split of forty rows tells next to nothing. Four folds are drawn twice, the same for both
# ways; what counts is the difference in each of the eight.
import numpy as np
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score

from skpeft import AdapterClassifier

cv = RepeatedStratifiedKFold(n_splits=4, n_repeats=2, random_state=0)
scores = {
    name: cross_val_score(
        AdapterClassifier(adapter=adapter, random_state=0), texts, kinds, cv=cv
    )
    for name, adapter in [("linear probe", None), ("adapters", "lora")]
}
for name, found in scores.items():
    print(f"{name}: {found.mean():.3f} ± {found.std():.3f}")
difference = scores["adapters"] - scores["linear probe"]
print(f"adapters ahead in {np.sum(difference > 0)}, behind in {np.sum(difference < 0)}")
print(f"difference: {difference.mean():+.3f} ± {difference.std():.3f}")

# %%
# The lines go up and down alike: thirty clauses do not show that adapters are better here. Then
# the linear probe is the one to use, and more marked clauses are what helps. Folds share
# most of their training rows, so the true uncertainty is larger than it looks.
import matplotlib.pyplot as plt

_, ax = plt.subplots(layout="constrained")
for pair in zip(*scores.values(), strict=True):
    ax.plot(list(scores), pair, "o-", color="#0072B2", alpha=0.4)
ax.plot(
    list(scores),
    [found.mean() for found in scores.values()],
    "D--",
    color="#D55E00",
    label="mean",
)
ax.set(xlabel="Fitted on 30 clauses", ylabel="Accuracy on 10 others")
ax.legend()
plt.show()

# %%
# A model with adapters for a first try, fitted on all forty. A clause of no kind that it knows
# gets one all the same; a low probability is a reason to look.
clf = AdapterClassifier(random_state=0).fit(texts, kinds)
new = [
    "Bills are settled by the fifteenth of the following month.",
    "The Vendor's exposure for any cause is capped at the purchase price.",
    "This agreement is governed by the laws of Norway.",
]
for text, row in zip(new, clf.predict_proba(new), strict=True):
    print(f"{clf.classes_[row.argmax()]} ({row.max():.2f}): {text}")

# %%
# What is saved is small: the encoder stays where it is, and one serves all such models.
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    clf.save_pretrained(folder)
    for path in sorted(Path(folder).iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")
