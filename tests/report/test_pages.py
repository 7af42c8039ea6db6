"""The pages stand alone, say what they should, and a hostile corpus does nothing."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape

from retro.base.stage import UserError
from retro.report import explorer, report_page, started, style
from retro.report.explorer import split_pieces
from retro.report.marks import marked
from retro.report.read import read_runs
from retro.report.style import embedded
from tests.evaluation.words import HOSTILE

pytestmark = pytest.mark.slow

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Reader(HTMLParser):
    """Reads a page: its elements, what is in its scripts and what it shows; unbalanced elements are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.scripts, self.shown, self.events = [], [], [], [], []
        self.links = []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.events += [name for name, _ in attributes if name.startswith("on")]
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.shown.append(data)


@pytest.fixture(scope="module")
def neighbours(report):
    return report.explorer()


@pytest.fixture(scope="module")
def page(report, neighbours):
    return report.page()


def test_the_hostile_corpus_is_really_shown(report, neighbours):
    data = json.loads(Reader(neighbours).scripts[0])
    assert any(HOSTILE in document["title"] for document in data["documents"])
    assert any("<script>alert" in "".join(chunk["pieces"]) for chunk in data["chunks"])


def test_a_hostile_corpus_adds_no_element(neighbours, page):
    for text, scripts in ((neighbours, 2), (page, 0)):
        found = Reader(text)
        assert len(found.scripts) == scripts and found.events == []
        assert "img" not in found.tags
        assert "49" not in "".join(found.shown).split()  # {{ 7*7 }} was not computed


def test_pages_ask_nothing_of_the_network(report, neighbours, page):
    for text in (neighbours, page):
        for link in Reader(text).links:
            assert link.startswith("#") or (report.folder / link).is_file(), link
        assert "default-src 'none'" in text
        assert not re.search(r"@import|url\(['\"]?http", text)


def test_json_cannot_end_its_script_element():
    text = embedded({"a": "</script><!-- & \u2028"})
    assert not re.search(r"[<>&\u2028]", text) and json.loads(text) == {"a": "</script><!-- & \u2028"}


def test_explorer_losses_are_those_of_the_tokens(report, neighbours):
    data = json.loads(Reader(neighbours).scripts[0])
    assert data["views"][0]["run"] == "retro-s1" and data["twin"] == "gpt-s1"
    assert len(data["chunks"]) == data["total"]["chunks"] == len(report.dataset.rows("test"))
    for view, mode in ((None, "none"), (0, "on"), (1, "off"), (2, "random")):
        losses = np.load(report.losses[mode].parent / "losses.npy")
        for position in (0, 7, len(losses) - 1):
            wanted, chunk = np.nansum(losses[position]), data["chunks"][position]
            found = chunk["gpt"] if view is None else chunk["views"][view]
            assert sum(found) / 100 == pytest.approx(wanted, abs=0.01 * losses.shape[1])


def test_explorer_shows_the_stored_neighbours(report, neighbours):
    data = json.loads(Reader(neighbours).scripts[0])
    ids = report.dataset.neighbour_ids("test")[:, :2]
    row = int(report.dataset.neighbour_rows(ids)[3, 0])
    number, score = data["chunks"][3]["near"][0]
    assert score == pytest.approx(float(np.load(report.folder / "neighbours/test/scores.npy")[3, 0]), abs=1e-3)
    page = data["pages"][data["texts"][number]["page"]]
    assert page["title"] == report.dataset.store.document(row)["title"]


def test_explorer_keeps_whole_documents_and_says_how_many(report):
    losses = explorer.sides([explorer.read_manifest(report.losses[mode]) for mode in ("none", "on")])
    data = explorer.collect(report.dataset, *losses, most=12)
    assert 0 < len(data["chunks"]) <= 12
    assert sum(document["count"] for document in data["documents"]) == len(data["chunks"])
    text = explorer.render("neighbours.html.j2", data=data)
    assert re.search(rf"{len(data['chunks'])} of {data['total']['chunks']} chunks", " ".join(text.split()))


def test_explorer_wants_a_gpt_and_a_retro_that_reads(report):
    off, on, none = (explorer.read_manifest(report.losses[mode]) for mode in ("off", "on", "none"))
    assert explorer.sides([off, on, none]) == (none, [on, off])
    for wrong in ([on], [none, off], [none, none, on]):
        with pytest.raises(UserError, match="wanted a GPT's losses and a RETRO's with mode on"):
            explorer.sides(wrong)


def test_explorer_says_how_long_a_copy_there_was_to_read(report, neighbours):
    dataset, data = report.dataset, json.loads(Reader(neighbours).scripts[0])
    rows, ids = dataset.rows("test"), dataset.neighbour_ids("test")[:, :2]
    firsts = {document["first"] for document in data["documents"]}
    for position, chunk in enumerate(data["chunks"]):
        if position in firsts:
            assert chunk["overlap"] == 0
            continue
        tokens = dataset.store.tokens(rows[position])[0].tolist()[: chunk["length"]]
        seen = dataset.store.retrieved(dataset.neighbour_rows(ids[position - 1]), 2)
        texts = [" ".join(map(str, each[mask])) + " " for each, mask in zip(*seen, strict=True)]
        pieces = [tokens[at:end] for at in range(len(tokens)) for end in range(at + 1, len(tokens) + 1)]
        runs = [len(piece) for piece in pieces if any(f" {' '.join(map(str, piece))} " in f" {text}" for text in texts)]
        assert chunk["overlap"] == max(runs, default=0)


def chunk(gpt, retro, overlap, length=64):
    return {"gpt": [gpt], "views": [[retro]], "overlap": overlap, "length": length}


def test_explorer_opens_where_reading_helped_without_a_copy():
    documents = [{"first": 0}, {"first": 4}]
    chunks = [chunk(900, 1, 0), chunk(900, 1, 64), chunk(900, 500, 8), chunk(900, 1, 0, length=9), chunk(900, 1, 0)]
    opened, why = explorer.opening(documents, chunks, 64)
    assert opened == 1 and "the 1 of 2 whole chunks" in why and "no more than 8 of 64 tokens" in why
    assert explorer.opening(documents, [chunks[0], chunks[1]], 64)[0] == 0
    worse = [chunks[0], chunk(900, 901, 3), chunk(900, 20, 12)]
    assert explorer.opening(documents, worse, 64)[0] == 1 and "16 of 64" in explorer.opening(documents, worse, 64)[1]
    assert explorer.opening(documents, chunks[:1], 64)[0] == 0


def test_report_tells_the_whole_story(page):
    shown = " ".join("".join(Reader(page).shown).split())
    assert "bits per byte" in shown and "95 % interval" in shown
    for section in ("Corpus", "Retrieval", "Training", "Evaluation", "Generation", "Cost", "Provenance"):
        assert f'id="{section.lower()}"' in page
    assert "The book is open" in shown and "atlas-old" in shown
    assert "has copy-ready cross-attention" in shown
    assert 'href="neighbours.html"' in page
    assert "with retrieval" in shown and "as it really goes on" in shown


def test_report_holds_every_figure_with_a_caption(page):
    found = Reader(page)
    assert found.tags.count("figure") == found.tags.count("figcaption") == found.tags.count("svg") == 5
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "two elements with one id"


def test_what_was_not_made_is_made_by_a_command_with_the_config_of_the_run(report, tmp_path):
    begun = tmp_path / "started.jsonl"
    begun.write_text(json.dumps({"command": "snakemake all --configfile 'my notes.yaml' --cores 2"}) + "\n")
    shown = " ".join("".join(Reader(report.page("--started", begun)).shown).split())
    assert "Leakage: made by snakemake leakage --configfile 'my notes.yaml'" in shown
    qa = "snakemake qa --configfile 'my notes.yaml' , if the config has qa as config/qa.yaml has it for the default run"
    assert qa.replace(" ,", ",") in shown.replace(" ,", ",")


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("snakemake --cores 2 --configfile a.yaml b.yaml", "--configfile a.yaml b.yaml"),
        ("snakemake all", ""),
        ("snakemake --configfile 'a", ""),
    ],
)
def test_configs_are_those_of_the_last_start(command, wanted):
    assert started.configs([{"command": "snakemake --configfile old.yaml"}, {"command": command}]) == wanted
    assert started.configs([]) == ""


def test_sections_that_were_not_made_are_one_list(page):
    shown = " ".join("".join(Reader(page).shown).split())
    assert "Experiments: made by snakemake experiments" in shown and "Leakage: made by snakemake leakage" in shown
    assert 'id="leakage"' not in page and page.count('id="not-made"') == 1


def test_figures_take_the_colours_of_the_page_and_keep_their_text(page):
    figures = page.partition('<figure id="figure-bpb">')[2].partition("</figure>")[0]
    assert "var(--on)" in figures and "var(--ink)" in figures
    for name in ("loss", "bpb", "sections", "cost", "neighbours"):
        drawn = page.partition(f'<figure id="figure-{name}">')[2].partition("</svg>")[0]
        assert not set(re.findall("#[0-9a-f]{6}", drawn)) & set(style.VARIABLES), name
        assert "</text>" in drawn and ("</title>" in drawn or "Too few documents" in drawn), name


def test_figures_link_to_their_values(report, page):
    for name in ("figures/loss", "figures/cost", "figures/neighbours", "comparison", "sections"):
        assert f'href="{name}.csv"' in page
    rows = (report.folder / "figures/loss.csv").read_text().splitlines()
    assert rows[0] == "run,read,retrieval,tokens,seconds,loss" and any(",validation,off," in row for row in rows)


def test_nothing_is_none_and_a_gpt_has_no_settings_of_retrieval(page):
    settings = page.partition("All settings of the models")[2].partition("</details>")[0]
    assert "None" not in settings and ">yes<" in settings
    assert "gpt" not in settings.partition("model.cca")[2].partition("</dd>")[0]
    assert "None" not in Reader(page).shown


def test_settings_are_those_that_runs_have(report):
    names = [report.folder / "runs" / name / "model.json" for name in ("gpt-s1", "retro-s1")]
    runs = read_runs(names)
    assert "cca" not in report_page.differing(runs[:1], "model") and "cca" in report_page.differing(runs, "model")
    wider = dataclasses.replace(runs[1], settings=runs[1].settings.model_copy(update={"seed": 2}))
    assert report_page.differing([*runs, wider], "model") == report_page.differing(runs, "model")
    assert report_page.told(True) == "yes" and report_page.told((3, 6)) == "3, 6"
    assert report_page.told({"fsdp": False, "tensor": 1, "none": None}) == "fsdp no, tensor 1"


def test_provenance_says_when_and_by_what(report, neighbours):
    begun = report.folder / "started.jsonl"
    lines = [{"date": "2026-01-02 03:04 UTC", "command": "snakemake <all>"}, {"date": "2026-01-03 03:04 UTC"}]
    begun.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no line\n[]\n")
    text = report.page("--started", begun, "--benchmarks", report.folder / "benchmarks")
    shown = " ".join("".join(Reader(text).shown).split())
    assert "last run2026-01-03 03:04 UTC" in shown and "total time7.5 s of 3 jobs, summed" in shown
    assert "All 2 runs of Snakemake" in shown and "snakemake <all>" in shown
    assert text == report.page("--started", begun, "--benchmarks", report.folder / "benchmarks")


def test_a_start_is_noted_with_command_commit_and_machine(tmp_path):
    started.note(tmp_path / "results", Path(__file__).parents[2])
    started.note(tmp_path / "results", tmp_path)  # no repository
    (first, second) = started.read(tmp_path / "results" / started.NAME)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", first["date"]) and "core" in first["machine"]
    assert "commit" not in second and first["command"]
    assert started.read(tmp_path / "nothing") == []


def test_copied_words_are_marked_and_nothing_else():
    text = "The <b> quick, brown fox jumps over; lazy dogs."
    assert (
        marked(text, ["A quick brown fox JUMPS"])
        == "The &lt;b&gt; <mark>quick, brown fox jumps</mark> over; lazy dogs."
    )
    assert marked(text, ["quick brown fox", "lazy dogs"]) == str(escape(text))
    assert marked("", ["x"]) == "" and marked(text, [text]).count("<mark>") == 1


def test_copied_words_of_samples_are_marked(report, page):
    samples = json.loads((report.folder / "runs/retro-s1/sample.json").read_text())["samples"]
    with_retrieval = page.partition("with retrieval</h4>")[2].partition("</div>")[0]
    found = [each for lookup in samples[0]["on"]["lookups"] for each in lookup["neighbours"]]
    read = [each["text"] + each["continuation"] for each in found]
    assert marked(samples[0]["on"]["text"], read) in with_retrieval


def test_pieces_join_to_the_text_and_count_every_token(report):
    tokenizer = report.dataset.tokenizer
    text = "Zürich — 日本 🙂 naïve\n\n  end"
    ids = [*tokenizer.encode_batch([text])[0].tolist(), tokenizer.eod_id]
    pieces = split_pieces(tokenizer, ids)
    assert "".join(piece for piece, _ in pieces) == text
    assert sum(count for _, count in pieces) == len(ids)
    assert pieces[-1] == ("", 1)
    for cut in range(1, len(ids)):  # a chunk may begin or end within a character
        assert sum(count for _, count in split_pieces(tokenizer, ids[:cut])) == cut
        assert sum(count for _, count in split_pieces(tokenizer, ids[cut:])) == len(ids) - cut


def test_the_report_says_which_sources_neighbours_come_from(report, page):
    dataset = report.dataset
    rows = page.partition('<table id="neighbour-sources">')[2].partition("</table>")[0].split("<tr><td>")[1:]
    assert [row.partition("<")[0] for row in rows] == ["train", "valid", "test"]
    for row in rows:
        ids = dataset.neighbour_ids(row.partition("<")[0])
        source = dataset.store.source(dataset.database[ids[ids >= 0]])
        for number, name in enumerate(dataset.sources):
            share = (source == number).sum() / ids.size
            assert (f"{name} {100 * share:.1f} %" in row) == (share > 0)
