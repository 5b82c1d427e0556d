"""The commit log and what lies beside it: names, durable files, attempts, commits.

`Attempt` writes a part, `latest_commit` finds it; everything else that holds committed things, a
catalog, a mirror, the service, learns of them from the log (`attnstore.store.commits.log`).
"""

from .attempt import Attempt, give_up_entry, register_run, remove_part
from .entry import Commit, Fact, StoredFile, commit_draft, draft
from .files import (
    MAX_JSON,
    check_marker,
    create_exclusive,
    hash_file,
    now,
    open_regular,
    parse_json,
    read_bounded,
    read_document,
    read_json,
    replace_file,
    sync_directory,
)
from .holding import Pieces, StorePaths
from .layout import (
    ARRAYS,
    ATTEMPT_FILE,
    MARKER,
    PULLED,
    SAFE,
    Key,
    Layout,
    check_id,
    check_relative,
    slug,
)
from .log import (
    History,
    Log,
    Revision,
    Unreadable,
    all_commits,
    committed_names,
    latest_commit,
    log_of,
    read_commits,
    unreadable_entries,
)

__all__ = [
    "ARRAYS",
    "ATTEMPT_FILE",
    "MARKER",
    "MAX_JSON",
    "PULLED",
    "SAFE",
    "Attempt",
    "Commit",
    "Fact",
    "History",
    "Key",
    "Layout",
    "Log",
    "Pieces",
    "Revision",
    "StorePaths",
    "StoredFile",
    "Unreadable",
    "all_commits",
    "check_id",
    "check_marker",
    "check_relative",
    "commit_draft",
    "committed_names",
    "create_exclusive",
    "draft",
    "give_up_entry",
    "hash_file",
    "latest_commit",
    "log_of",
    "now",
    "open_regular",
    "parse_json",
    "read_bounded",
    "read_commits",
    "read_document",
    "read_json",
    "register_run",
    "remove_part",
    "replace_file",
    "slug",
    "sync_directory",
    "unreadable_entries",
]
