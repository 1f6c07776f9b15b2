"""Croissant metadata of a package, `croissant.json`: its files, classes and records as JSON-LD for other tools.

The format is Croissant 1.0 (https://docs.mlcommons.org/croissant), which more readers know than 1.1. What cannot be
said in it is left out: the tensors of the one file, and the soft labels of shards. The recommended date of publication
is left out, too, since packages hold no times; readers warn about that.

Texts of a manifest are only ever values. Identifiers and patterns are ASCII and made here.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from ncfmkit.sets.manifest import Manifest

NAME = "croissant.json"
CONTEXT: dict[str, Any] = {  # as the specification has it: readers compare
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
CITATION = (
    "Wang et al., Dataset Distillation with Neural Characteristic Function: A Minmax Perspective, CVPR 2025, "
    "https://arxiv.org/abs/2502.20653"
)
BINARY = "application/octet-stream"
FORMATS = {  # by the ending of a file's name; others are `BINARY`
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".md": "text/markdown",
    ".parquet": "application/x-parquet",
    ".png": "image/png",
    ".py": "text/x-python",
    ".tar": "application/x-tar",
    ".txt": "text/plain",
    ".webp": "image/webp",
}
METADATA = "train/metadata.parquet"  # of the layout `png`
PICTURES = r"train/[^/]+/[^/]+"  # of that layout, in class folders
# Of such a path what the metadata have; also of that, because mlcroissant applies the pattern of a reference twice.
INSIDE = r"^(?:train/)?([^/]+/[^/]+)$"
STEM = r"^([^.]+)[.][a-z]+$"  # of a file name


def croissant(
    manifest: Manifest, *, layout: str, encoding: str, files: Mapping[str, tuple[int, str]]
) -> dict[str, Any]:
    """The content of `croissant.json`, JSON values.

    Args:
        manifest: of the set.
        layout: of the package's view: `parquet`, `webdataset` or `png`, or another without a view.
        encoding: of the view's pictures, `png` or `webp`.
        files: bytes and sha256 of the package's files, by name; without checksums and this file.
    """
    source, soft = manifest.source, "soft_labels" in manifest.sha256
    described: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "description": (
            f"{len(manifest.classes) * manifest.ipc.decoded:,} synthetic training images of {len(manifest.classes)} "
            f"classes, made by dataset distillation from {source.name} ({source.train_images:,} training images)."
        ),
        "version": f"1.0.0+{manifest.manifest_sha256[:12]}",  # a set never changes: other content is another set
        "keywords": ["dataset distillation", "image classification", "synthetic"],
    }
    if source.license is not None:
        described["license"] = source.license
    if source.converted is None:  # else another method made it
        described["citeAs"] = CITATION
    # in the layout `png` there are too many to list
    names = sorted(name for name in files if layout != "png" or not re.fullmatch(PICTURES, name))
    described["distribution"] = [_file_object(name, *files[name]) for name in names]
    if layout == "parquet":
        file_sets, record_sets = _parquet(soft)
    elif layout == "webdataset":
        file_sets, record_sets = _webdataset(encoding, [name for name in names if name.endswith(".tar")])
    elif layout == "png":
        file_sets, record_sets = _class_folders(encoding, soft)
    else:
        return described
    described["distribution"] += file_sets  # without a container: the files beside croissant.json
    described["recordSet"] = [_classes(manifest.classes), *record_sets]
    return described


def _file_object(name: str, size: int, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": quote(name),  # names have letters of all scripts
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": FORMATS.get(PurePosixPath(name).suffix, BINARY),
        "sha256": sha256,
    }


def _file_set(name: str, encoding_format: str, includes: str, **more: Any) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "encodingFormat": encoding_format, "includes": includes} | more


def _field(name: str, data_type: str, source: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name, "dataType": data_type, "source": source} | more


def _record_set(name: str, fields: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields} | more


def _classes(names: Sequence[str]) -> dict[str, Any]:
    """The classes in label order."""
    fields = [
        {"@type": "cr:Field", "@id": "classes/label", "name": "classes/label", "dataType": "sc:Integer"},
        {"@type": "cr:Field", "@id": "classes/name", "name": "classes/name", "dataType": "sc:Text"},
    ]
    rows = [{"classes/label": label, "classes/name": name} for label, name in enumerate(names)]
    return _record_set("classes", fields, dataType="sc:Enumeration", key={"@id": "classes/label"}, data=rows)


View = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # file sets, record sets


def _parquet(soft: bool) -> View:
    def column(name: str) -> dict[str, Any]:
        return {"fileSet": {"@id": "parquet-files"}, "extract": {"column": name}}

    classes = {"references": {"field": {"@id": "classes/label"}}}
    fields = [
        _field("images/image", "sc:ImageObject", column("image") | {"transform": {"jsonPath": "bytes"}}),
        _field("images/label", "sc:Integer", column("label"), **classes),
        *([_field("images/soft_labels", "sc:Float", column("soft_labels"), repeated=True)] if soft else []),
    ]
    return [_file_set("parquet-files", FORMATS[".parquet"], "data/*.parquet")], [_record_set("images", fields)]


def _webdataset(encoding: str, shards: list[str]) -> View:
    """Pictures and labels are files of one name, the key of the sample.

    They are two record sets: mlcroissant reads no reference between files that are matched by a part of their names.
    """

    def source(file_set: str, of_a_file: str) -> dict[str, Any]:
        return {"fileSet": {"@id": file_set}, "extract": {"fileProperty": of_a_file}}

    inside, stem = [{"@id": quote(name)} for name in shards], {"transform": {"regex": STEM}}
    images = [
        _field("images/key", "sc:Text", source("picture-files", "filename") | stem),
        _field("images/image", "sc:ImageObject", source("picture-files", "content")),
    ]
    labels = [
        _field("labels/key", "sc:Text", source("label-files", "filename") | stem),
        _field("labels/label", "sc:Integer", source("label-files", "content")),
    ]
    return [
        _file_set("picture-files", FORMATS[f".{encoding}"], f"*.{encoding}", containedIn=inside),
        _file_set("label-files", FORMATS[".txt"], "*.cls", containedIn=inside),
    ], [
        _record_set("images", images, key={"@id": "images/key"}),
        _record_set(
            "labels", labels, key={"@id": "labels/key"}, description="The label of the image with the same key."
        ),
    ]


def _class_folders(encoding: str, soft: bool) -> View:
    def of_a_file(name: str) -> dict[str, Any]:
        return {"fileSet": {"@id": "picture-files"}, "extract": {"fileProperty": name}}

    def column(name: str) -> dict[str, Any]:
        return {"fileObject": {"@id": METADATA}, "extract": {"column": name}}

    path = of_a_file("fullpath") | {"transform": {"regex": INSIDE}}
    fields = [
        _field("images/file_name", "sc:Text", path, references=column("file_name")),
        _field("images/image", "sc:ImageObject", of_a_file("content")),
        _field("images/label", "sc:Integer", column("label")),
        *([_field("images/soft_labels", "sc:Float", column("soft_labels"), repeated=True)] if soft else []),
    ]
    return [_file_set("picture-files", FORMATS[f".{encoding}"], f"train/*/*.{encoding}")], [
        _record_set("images", fields)
    ]
