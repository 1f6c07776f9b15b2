"""Croissant metadata of a package, `croissant.json`: its files, classes and records as JSON-LD for other tools.

The format is Croissant 1.0 (https://docs.mlcommons.org/croissant), which more readers know than 1.1. What cannot be
said in it is left out: the tensors of the one file, and soft labels that are in `.npy` files. The recommended date of
publication is left out, too, since packages hold no times; readers warn about that.

Texts of a manifest are only ever values. Identifiers and patterns are ASCII and made here.
"""

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from ncfmkit.sets.manifest import DIGEST_KEY

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
PICTURES = r"train/[^/]+/[^/]+"  # of the layout `png`, in class folders
# The folder of such a path; of a folder itself, too, because mlcroissant applies the pattern of a reference twice.
CLASS_FOLDER = r"^(?:train/)?([^/]+)(?:/[^/]+)?$"
STEM = r"^([^.]+)[.][a-z]+$"  # of a file name


def croissant(
    manifest: Mapping[str, Any], *, layout: str, encoding: str, files: Mapping[str, tuple[int, str]]
) -> dict[str, Any]:
    """The content of `croissant.json`, JSON values.

    Args:
        manifest: of the set.
        layout: of the package's view: `parquet`, `webdataset` or `png`, or another without a view.
        encoding: of the view's pictures, `png` or `webp`.
        files: bytes and sha256 of the package's files, by name; without checksums and this file.
    """
    classes, source = manifest["classes"], manifest["source"]
    described: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest["name"],
        "description": (
            f"{len(classes) * manifest['ipc']['decoded']:,} synthetic training images of {len(classes)} classes, made "
            f"by dataset distillation from {source['name']} ({source['train_images']:,} training images)."
        ),
        "version": f"1.0.0+{manifest[DIGEST_KEY][:12]}",  # a set never changes: other content is another set
        "keywords": ["dataset distillation", "image classification", "synthetic"],
    }
    if source["license"] is not None:
        described["license"] = source["license"]
    if "converted" not in source:  # else another method made it
        described["citeAs"] = CITATION
    pictures = {name for name in files if layout == "png" and re.fullmatch(PICTURES, name)}  # too many to list
    described["distribution"] = [_file_object(name, *files[name]) for name in sorted(files.keys() - pictures)]
    # a file set without a container has the files beside croissant.json
    if layout == "parquet":
        view = _parquet("soft_labels" in manifest["sha256"])
    elif layout == "webdataset":
        view = _webdataset(encoding, [name for name in sorted(files) if name.endswith(".tar")])
    elif layout == "png":
        view = _class_folders(encoding)
    else:
        return described
    file_sets, record_sets = view
    described["distribution"] += file_sets
    described["recordSet"] = [_classes(manifest["classes"], pictures), *record_sets]
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


def _field(
    name: str,
    data_type: str,
    file_set: str,
    extract: dict[str, str],
    *,
    transform: dict[str, str] | None = None,
    refers_to: str | None = None,
    repeated: bool = False,
) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": file_set}, "extract": extract}
    source |= {} if transform is None else {"transform": transform}
    field = {"@type": "cr:Field", "@id": name, "name": name, "dataType": data_type, "source": source}
    field |= {} if refers_to is None else {"references": {"field": {"@id": refers_to}}}
    return field | ({"repeated": True} if repeated else {})


def _record_set(name: str, fields: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "field": fields} | more


def _classes(names: Sequence[str], pictures: Set[str]) -> dict[str, Any]:
    """The classes in label order, which is that of the sorted class folders where pictures lie in them."""
    columns: dict[str, Sequence[Any]] = {"classes/label": range(len(names)), "classes/name": names}
    if pictures:
        columns["classes/folder"] = sorted({name.split("/")[1] for name in pictures})
    fields = [
        {"@type": "cr:Field", "@id": field, "name": field, "dataType": "sc:Integer" if number == 0 else "sc:Text"}
        for number, field in enumerate(columns)
    ]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _record_set("classes", fields, dataType="sc:Enumeration", key={"@id": "classes/label"}, data=rows)


View = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # file sets, record sets


def _parquet(soft: bool) -> View:
    fields = [
        _field("images/image", "sc:ImageObject", "parquet-files", {"column": "image"}, transform={"jsonPath": "bytes"}),
        _field("images/label", "sc:Integer", "parquet-files", {"column": "label"}, refers_to="classes/label"),
    ]
    if soft:
        fields.append(
            _field("images/soft_labels", "sc:Float", "parquet-files", {"column": "soft_labels"}, repeated=True)
        )
    return [_file_set("parquet-files", FORMATS[".parquet"], "data/*.parquet")], [_record_set("images", fields)]


def _webdataset(encoding: str, shards: list[str]) -> View:
    """Pictures and labels are files of one name, the key of the sample.

    They are two record sets: mlcroissant reads no reference between files that are matched by a part of their names.
    """
    inside = [{"@id": quote(name)} for name in shards]
    name, content = {"fileProperty": "filename"}, {"fileProperty": "content"}
    images = [
        _field("images/key", "sc:Text", "picture-files", name, transform={"regex": STEM}),
        _field("images/image", "sc:ImageObject", "picture-files", content),
    ]
    labels = [
        _field("labels/key", "sc:Text", "label-files", name, transform={"regex": STEM}),
        _field("labels/label", "sc:Integer", "label-files", content),
    ]
    return [
        _file_set("picture-files", FORMATS[f".{encoding}"], f"*.{encoding}", containedIn=inside),
        _file_set("label-files", FORMATS[".txt"], "*.cls", containedIn=inside),
    ], [
        _record_set("images", images, key={"@id": "images/key"}),
        _record_set(
            "labels", labels, key={"@id": "labels/key"}, description="The class of the image with the same key."
        ),
    ]


def _class_folders(encoding: str) -> View:
    fields = [
        _field("images/image", "sc:ImageObject", "picture-files", {"fileProperty": "content"}),
        _field(
            "images/folder",
            "sc:Text",
            "picture-files",
            {"fileProperty": "fullpath"},
            transform={"regex": CLASS_FOLDER},
            refers_to="classes/folder",
        ),
    ]
    return [_file_set("picture-files", FORMATS[f".{encoding}"], f"train/*/*.{encoding}")], [
        _record_set("images", fields)
    ]
