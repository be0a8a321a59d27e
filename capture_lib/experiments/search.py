"""The searcher of a run: its trained stages and its gallery, ready for queries."""

from collections.abc import Sequence

from capture_lib.experiments import stages
from capture_lib.experiments.run import Run
from capture_lib.retrieval import embedding, wccn
from capture_lib.retrieval.search import Item, Searcher


def open_searcher(run: Run, levels: Sequence[str] = ("instance",)) -> Searcher:
    """Load a run's stages, training what is missing, and embed the gallery at some levels.

    A catalog without a gallery is searched as a whole.
    """
    store, _ = stages.region_store(run)
    trained = stages.pretrained(run)
    table = stages.samples(run, "gallery")
    if table.empty:
        table = stages.photographed(run)
        print(f"{run.catalog.name} has no gallery: searching all its {len(table):,} photos")

    # embed the gallery
    pairs = stages.pairs_of(run, table, store, trained)
    words = stages.caption_words(run) if any(table["caption"]) else None
    gallery = embedding.embed_samples(
        table, pairs, trained.model, words, run.profile.instances, True, levels)
    maps = stages.wccn_maps(run, trained, words)

    # name its photos
    items = {}
    for row, (sample, caption, labels) in enumerate(
            zip(gallery.ids, gallery.captions, gallery.labels, strict=True)):
        items[row] = Item(sample, run.catalog.photos[sample], caption, labels)
    return Searcher(
        detector=stages.trained_detector(run)[0],
        encoder=stages.trained_encoder(run)[0],
        tokenizer=trained.tokenizer,
        model=trained.model,
        words=words,
        gallery=wccn.apply_maps(gallery, maps),
        items=items,
        regions=run.profile.regions,
        instances=run.profile.instances,
        batches=run.profile.batches,
        choices=stages.stored_choices(run),
        maps=maps,
        levels=levels,
    )
