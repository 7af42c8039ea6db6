"""A small corpus with overlapping wording: two sources, an open book, and documents that mean harm."""

import random

PLACES = ["Alba", "Borea", "Cera", "Dorn", "Elis", "Faro", "Gond", "Hyrk", "Ilva", "Jorn", "Kesh", "Lund"]
SECTIONS = ["Geography", "Economy", "Energy"]
HOSTILE = '</script><script>alert("x")</script> <img src=x onerror=alert(1)> {{ 7*7 }} &amp; \u2028 ]]> <!-- é'
COMMON = "coast river mountain trade export wheat iron harbour border total land area people town law"
WORDS = COMMON.split(" ")


def corpus() -> dict[str, list[dict]]:
    """Records by source: `atlas`, its older edition `atlas-old` (the open book), hostile `speeches`."""
    rng = random.Random(7)
    atlas, old, speeches = [], [], []
    for place in PLACES:
        for section in SECTIONS:
            words = " ".join(rng.choice(WORDS) for _ in range(40))
            area = f"{rng.randint(10, 999)},{rng.randint(100, 999)} sq km"
            text = f"{place}: {section}\n\nTotal area: {area}. {words}."
            record = {"id": f"{place}-{section}".lower(), "group": place, "title": f"{place}: {section}"}
            atlas.append({**record, "text": text})
            old.append({**record, "id": f"old-{record['id']}", "text": text.replace("Total", "Whole")})
    for number in range(8):
        text = " ".join(rng.choice(WORDS) for _ in range(70)) + f" {HOSTILE}"
        title = f"Speech {number} {HOSTILE}"
        speeches.append({"id": f"speech-{number}", "group": f"{number} {HOSTILE}", "title": title, "text": text})
    return {"atlas": atlas, "atlas-old": old, "speeches": speeches}
