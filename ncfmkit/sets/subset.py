"""One set, many sizes: the first stored images of each class as a set of their own (docs/formats.md)."""

import dataclasses

import torch

from ncfmkit.errors import UserError
from ncfmkit.mosaic import decoded_rows
from ncfmkit.sets import pixels
from ncfmkit.sets.manifest import Original, PartOf, tensors_of, with_digests
from ncfmkit.sets.synthetic import SyntheticSet


def first_images(whole: SyntheticSet, ipc: int) -> SyntheticSet:
    """The set of the first `ipc` stored images of each class: they decode to what they decode to in the whole set.

    It has no score; that of the whole set is kept beside its digest. All images of a class are the set as it is.

    Raises:
        UserError: not from 1 to the stored images per class.
    """
    m, how, stored = whole.manifest, whole.manifest.decode, whole.ipc
    if not 1 <= ipc <= stored:
        raise UserError(f"--ipc {ipc}: expected 1 to {stored}, the images per class that {m.name} stores")
    if ipc == stored:
        return whole

    # `bound` selects factor by factor, then image by image: what it selects of the first images is a budget of theirs
    decoded = int(decoded_rows(how.kind, how.factor, stored, how.budget)[:ipc].sum())
    if how.budget is not None:
        how = how.model_copy(update={"budget": decoded})
    soft, tensors, packing = whole.soft_labels, whole.pixel_tensors, m.pixels
    if soft is not None:
        soft = soft.unflatten(0, (len(m.classes), -1))[:, :decoded].flatten(0, 1).contiguous()
    if packing is not None and packing.original is not None:  # its digest and score are of all images
        packing = packing.model_copy(update={"original": Original()})
    if packing is not None and tensors is not None:
        rows = first_of_each(torch.arange(len(whole)), stored, ipc).tolist()
        tensors, packing = pixels.selected(tensors, len(whole), rows, packing)
    part = dataclasses.replace(
        whole,
        images=first_of_each(whole.images, stored, ipc),
        labels=first_of_each(whole.labels, stored, ipc),
        pixel_tensors=tensors,
        soft_labels=soft,
        manifest=m.changed(
            name=f"{m.name.removesuffix(f'-ipc{stored}')}-ipc{ipc}",
            ipc=m.ipc.model_copy(update={"stored": ipc, "decoded": decoded}),
            decode=how,
            pixels=packing,
            score=None,
            part_of=m.part_of or PartOf(manifest_sha256=m.manifest_sha256, ipc=stored, score=m.score),
        ),
    )
    return dataclasses.replace(part, manifest=with_digests(part.manifest.to_dict(), tensors_of(part)))


def first_of_each(rows: torch.Tensor, stored: int, ipc: int) -> torch.Tensor:
    """The first `ipc` of every `stored` rows."""
    return rows.unflatten(0, (-1, stored))[:, :ipc].flatten(0, 1).contiguous()
