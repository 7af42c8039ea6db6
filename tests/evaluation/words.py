"""A small corpus with overlapping wording, two sources, an open book, and hostile documents."""

import random

PLACES = ["Alba", "Borea", "Cera", "Dorn", "Elis", "Faro", "Gond", "Hyrk", "Ilva", "Jorn", "Kesh", "Lund"]
SECTIONS = ["Geography", "Economy", "Energy"]
HOSTILE = '</script><script>alert("x")</script> <img src=x onerror=alert(1)> {{ 7*7 }} &amp; \u2028 ]]> <!-- é'
WORDS = ["coast", "river", "mountain", "trade", "export", "wheat", "iron", "harbour", "border", "total", "land", "area", "people", "town", "law"]


def corpus() -> dict[str, list[dict]]:
    """Records by source: `atlas` (train, valid, test), `atlas-old` (the open book), `speeches` (no sections)."""
    rng = random.Random(7)
    atlas, old, speeches = [], [], []
    for number, place in enumerate(PLACES):
        split = "test" if number % 4 == 3 else "valid" if number == 6 else "train"
        for section in SECTIONS:
            words = " ".join(rng.choice(WORDS) for _ in range(40))
            text = f"{place}: {section}\n\nTotal area: {rng.randint(10, 999)},{rng.randint(100, 999)} sq km. {words}."
            key = f"{place}-{section}".lower()
            record = {"id": key, "group": place, "title": f"{place}: {section}", "text": text}
            atlas.append({**record, "split": split})
            old.append({**record, "id": f"old-{key}", "text": text.replace("Total", "Whole"), "split": "book"})
    for number, split in enumerate(["train", "test", "train", "test"]):
        text = " ".join(rng.choice(WORDS) for _ in range(70)) + (f" {HOSTILE}" if number % 2 else "")
        title = f"Speech {number} {HOSTILE}" if number % 2 else f"Speech {number}"
        speeches.append({"id": f"speech-{number}", "group": str(number), "title": title, "text": text, "split": split})
    return {"atlas": atlas, "atlas-old": old, "speeches": speeches}
