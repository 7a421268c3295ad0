"""What the registry says of a model: tags to find it by, and a card made of them."""

from collections.abc import Mapping
from typing import Any

AT = "fmcore.at_"  # of tags: what a model scores within so many evaluations, and how
SHA = "fmcore.sha256"
VERSION = "fmcore.version"  # of a run's tags: the registered version that its model is
DIGITS = 12  # of digests, in what people read


def tags_of(manifest: Mapping[str, Any], digest: str, known: Mapping[str, str]) -> dict[str, str]:
    """Where a model comes from, as its manifest tells.

    Main arguments:
        known: registered versions by the digest of their weights.
    """

    def told(model: Mapping[str, Any]) -> str:
        sha = str(model["sha256"])
        there = f", version {known[sha]}" if sha in known else ""
        return f"{model['model']} ({sha[:DIGITS]}{there})"

    tags = {SHA: digest}
    tags |= {f"fmcore.{key}": str(manifest[key]) for key in ("stage", "rounds", "images_seen") if key in manifest}
    if "init" in manifest:
        tags["fmcore.starts_from"] = told(manifest["init"])
    if "couplings" in manifest:
        couplings = manifest["couplings"]
        tags["fmcore.couplings"] = f"{couplings['round']}, made by {told(couplings['teacher'])}"
    return tags


def card(name: str, version: str, tags: Mapping[str, str]) -> str:
    """The card of a version, in Markdown."""
    model, data = tags.get("fmcore.model", "model"), tags.get("fmcore.data", "")
    lines = [f"**{model}**" + (f" of {data}" if data else "") + f", stage `{tags.get('fmcore.stage', '?')}`."]
    lineage = [("starts from", "fmcore.starts_from"), ("learnt the couplings of", "fmcore.couplings")]
    lines += [f"It {word} {tags[key]}." for word, key in lineage if key in tags]
    scores = sorted((int(key.removeprefix(AT)), text) for key, text in tags.items() if key.startswith(AT))
    if scores:
        rows = [["evaluations of the network, at most", "distance to the data"], ["---", "---"]]
        rows += [[str(budget), text] for budget, text in scores]
        lines.append(f"Scored by {tags['fmcore.yardstick']}:")
        lines.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    lines.append(f'```python\nimport flows\n\nmodel = flows.load("models:/{name}/{version}")\n```')
    lines.append(f"```sh\nmlflow models serve -m models:/{name}/{version} --env-manager local\n```")
    return "\n\n".join(lines)
