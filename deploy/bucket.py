"""Copy a bucket of an S3-compatible store to a folder, or back: `bucket.py down|up BUCKET FOLDER`.

The keys and the address come from the environment, as boto3 reads them: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL. What is there already in the same size is not copied again, so an
interrupted copy goes on where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError


def down(client: Any, bucket: str, folder: Path) -> None:  # noqa: ANN401 - boto3 is not typed
    """Copy every object of the bucket to a file below the folder.

    Raises:
        ValueError: an object's name leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for key, size in contents(client, bucket).items():
        path = folder / key
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the object {key!r} would be written outside of {folder}")
        if path.exists() and path.stat().st_size == size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, key, str(path))


def up(client: Any, bucket: str, folder: Path) -> None:  # noqa: ANN401 - boto3 is not typed
    """Copy every file below the folder to an object; objects that the folder lacks are left alone."""
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError:
        client.create_bucket(Bucket=bucket)
    there = contents(client, bucket)
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        key = path.relative_to(folder).as_posix()
        if there.get(key) != path.stat().st_size:
            client.upload_file(str(path), bucket, key)


def contents(client: Any, bucket: str) -> dict[str, int]:  # noqa: ANN401 - boto3 is not typed
    """The size in bytes of every object, by its key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", ())}


def main() -> int:
    """Run `python bucket.py down|up BUCKET FOLDER`."""
    copy = {"down": down, "up": up}.get(sys.argv[1]) if len(sys.argv) == 4 else None
    if copy is None:
        print("usage: bucket.py down|up BUCKET FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    copy(boto3.client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL")), sys.argv[2], Path(sys.argv[3]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
