"""A small Hub for tests: the endpoints that `huggingface_hub` calls, in memory, with faults on request.

The unmodified client talks to it over HTTP through `HF_ENDPOINT`. It keeps repositories as commits (`path -> bytes`)
and refs (`name -> commit`), stores big or binary files through the LFS protocol, and sends LFS downloads through a
redirect to another host name ("CDN"), as the real Hub does, so that a token that leaks there is seen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".h5", ".msgpack", ".onnx", ".png", ".jpg", ".parquet")
REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
EMPTY_COMMIT = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Fault:
    """
    What goes wrong, for which requests, and how often.

    Args:
        kind (`str`): `"status"` (answer with `status` and `answer`), `"drop"` (close the connection after `after` body
            bytes, Content-Length still promising all), `"truncate"` (a shorter file, with an honest Content-Length),
            `"corrupt"` (same length, other bytes), `"wrong_etag"` (another ETag than the content's), `"stall"` (send
            `after` bytes, then nothing for `seconds`), `"drip"` (`after` bytes at a time, `seconds` apart),
            `"refuse"` (close the connection without an answer).
        path (`str`): Regular expression searched in the request's path.
        method (`str`, *optional*): Only this HTTP method.
        times (`int`, *optional*): How many requests it hits; `None` for every one.
    """

    kind: str
    path: str = ""
    method: str | None = None
    times: int | None = None
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"
    answer: Any = None
    after: int = 0
    seconds: float = 0.0
    hits: int = 0

    def matches(self, method: str, path: str) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        return (self.method is None or self.method == method) and re.search(self.path, path) is not None


@dataclass
class Request:
    """One request the server saw."""

    method: str
    path: str
    host: str
    token: str | None
    status: int | None = None


class Repo:
    """Commits, refs and access rules of one repository."""

    def __init__(self, repo_id: str, repo_type: str = "model", private: bool = False, gated: bool = False):
        self.id, self.type, self.private, self.gated = repo_id, repo_type, private, gated
        self.granted: set[str] = set()  # users let through the gate
        self.commits: dict[str, dict[str, bytes]] = {}
        self.log: list[dict] = []
        self.refs: dict[str, str] = {}
        self.pull_requests = 0
        self.commit("main", dict(EMPTY_COMMIT), "initial commit", parent=None)

    def commit(self, ref: str, files: dict[str, bytes], message: str, parent: str | None) -> str:
        digest = hashlib.sha1(repr((self.id, ref, message, parent, len(self.commits))).encode())
        for path in sorted(files):
            digest.update(path.encode() + hashlib.sha1(files[path]).digest())
        sha = digest.hexdigest()
        self.commits[sha] = files
        self.log.append({"sha": sha, "ref": ref, "message": message, "parent": parent})
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    @property
    def head(self) -> str:
        return self.refs["main"]

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_lfs(path: str, content: bytes) -> bool:
    return path.endswith(LFS_SUFFIXES) or b"\0" in content[:512]


class HubServer:
    """
    Start with `with HubServer() as hub:`; `hub.url` is the `HF_ENDPOINT`.

    `hub.users` maps tokens to user names; `hub.repos[(type, id)]` is the state; `hub.requests` the log. With
    `hub.mirror`, a function from a file's content to its ETag, it serves files as a proxy does: all from here, and
    tagged in another way, or not at all.
    """

    def __init__(self):
        self.users: dict[str, str] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.mirror: Callable[[bytes], str | None] | None = None
        self.lock = threading.RLock()
        self.httpd = _Server(("127.0.0.1", 0), _Handler)
        self.httpd.hub = self
        self.port = self.httpd.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn_url = f"http://localhost:{self.port}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> HubServer:
        self.thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def reset(self) -> None:
        with self.lock:
            for store in (self.users, self.repos, self.objects, self.faults, self.requests):
                store.clear()
            self.mirror = None

    # What tests do on the server's side, without HTTP.
    def add_user(self, name: str, token: str) -> None:
        self.users[token] = name

    def add_repo(self, repo_id: str, files: dict[str, bytes], repo_type: str = "model", **access) -> str:
        repo = self.repos.setdefault((repo_type, repo_id), Repo(repo_id, repo_type, **access))
        merged = {**repo.commits[repo.head], **files}
        return repo.commit("main", merged, "server side", parent=repo.head)

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[(repo_type, repo_id)]

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        repo = self.repo(repo_id, repo_type)
        return repo.commits[repo.resolve(revision)]

    def inject(self, kind: str, path: str = "", **options) -> Fault:
        fault = Fault(kind, path, **options)
        with self.lock:
            self.faults.append(fault)
        return fault

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.matches(method, path):
                    fault.hits += 1
                    return fault
        return None

    def seen(self, method: str | None = None, path: str = "") -> list[Request]:
        return [r for r in self.requests if (method in (None, r.method)) and re.search(path, r.path)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that hangs up in the middle is part of the tests, anything else is a bug worth a traceback."""
        import sys

        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """An error answer: status, the Hub's error code, message."""

    def __init__(self, status: int, code: str | None = None, message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, format, *args):
        """Silent: `hub.requests` is the log."""

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # -- plumbing
    def answer(self):
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        self.segments = [unquote(part) for part in split.path.strip("/").split("/")]
        path = "/" + "/".join(self.segments)
        authorization = self.headers.get("Authorization")
        self.token = authorization.removeprefix("Bearer ") if authorization else None
        self.record = Request(self.command, path, self.headers.get("Host", ""), self.token)
        with self.hub.lock:
            self.hub.requests.append(self.record)
        self.fault = self.hub.take_fault(self.command, path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.fault is not None and self.fault.kind == "refuse":
            self.hang_up()
            return
        try:
            if self.fault is not None and self.fault.kind == "status":
                answer = {"error": self.fault.message} if self.fault.answer is None else self.fault.answer
                self.send(self.fault.status, answer, self.fault.headers)
                return
            with self.hub.lock:
                reply = self.route(path, body)
            reply()
        except _Refused as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send(refusal.status, {"error": refusal.message}, headers)

    def hang_up(self):
        self.close_connection = True
        self.record.status = 0
        self.wfile.flush()
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was faster

    def send(self, status: int, content=b"", headers: dict[str, str] | None = None):
        headers = dict(headers or {})
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        fault = self.fault
        promised = len(content)
        if fault is not None and self.command == "GET" and status in (200, 206):
            if fault.kind == "truncate":
                content = content[: fault.after]
                promised = len(content)
            elif fault.kind == "corrupt":
                # Only the tail: a safetensors header stays readable, the numbers do not.
                half = len(content) // 2
                content = content[:half] + bytes(byte ^ 0x55 for byte in content[half:])
        if fault is not None and fault.kind == "wrong_etag":
            for name in ("ETag", "X-Linked-Etag"):
                if name in headers:
                    headers[name] = '"' + "0" * len(headers[name].strip('"')) + '"'
        self.record.status = status
        self.send_response(status)
        headers.setdefault("Content-Length", str(promised))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.kind == "drop":
            self.wfile.write(content[: fault.after])
            self.hang_up()
        elif fault is not None and fault.kind == "stall":
            self.wfile.write(content[: fault.after])
            self.wfile.flush()
            time.sleep(fault.seconds)
            self.hang_up()
        elif fault is not None and fault.kind == "drip":
            for start in range(0, len(content), fault.after):
                self.wfile.write(content[start : start + fault.after])
                self.wfile.flush()
                time.sleep(fault.seconds)
        else:
            self.wfile.write(content)

    def json(self, content, status: int = 200, headers: dict[str, str] | None = None):
        return lambda: self.send(status, content, headers)

    # -- who may do what
    @property
    def user(self) -> str | None:
        if self.token is None:
            return None
        if self.token not in self.hub.users:
            raise _Refused(401, None, "Invalid credentials in Authorization header")
        return self.hub.users[self.token]

    def require_user(self) -> str:
        user = self.user
        if user is None:
            raise _Refused(401, None, "Invalid username or password.")
        return user

    def find_repo(self, repo_type: str, repo_id: str, files: bool = False) -> Repo:
        repo = self.hub.repos.get((repo_type, repo_id))
        user = self.user
        if repo is None or (repo.private and user != repo.owner):
            # The real Hub does not tell a stranger whether a private repository exists.
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if files and repo.gated and user != repo.owner and user not in repo.granted:
            raise _Refused(
                403 if user else 401,
                "GatedRepo",
                f"Access to {repo_type} {repo_id} is restricted and you are not in the authorized list.",
            )
        return repo

    def find_commit(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def writable(self, repo: Repo) -> Repo:
        if self.require_user() != repo.owner:
            raise _Refused(403, None, f"You don't have the rights to write to {repo.id}")
        return repo

    # -- routes
    def route(self, path: str, body: bytes):
        parts = self.segments
        if parts[0] == "cdn":
            return self.download_object(parts[1])
        if parts[0] == "lfs-upload" and self.command == "PUT":
            return self.upload_object(parts[1], body)
        if parts[0] == "lfs-verify":
            return self.verify_object(json.loads(body))
        if parts[:2] == ["api", "whoami-v2"]:
            role = {"accessToken": {"displayName": "test", "role": "write"}}
            return self.json({"type": "user", "name": self.require_user(), "orgs": [], "auth": role})
        if parts[:2] == ["api", "validate-yaml"]:
            return self.validate_yaml(json.loads(body)["content"])
        if parts[:3] == ["api", "repos", "create"]:
            return self.create_repo(json.loads(body))
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in REPO_TYPES:
            return self.route_api(REPO_TYPES[parts[1]], "/".join(parts[2:4]), parts[4:], body)
        repo_type = REPO_TYPES.get(parts[0])
        if repo_type:
            parts = parts[1:]
        if path.endswith("/info/lfs/objects/batch"):
            repo_id = f"{parts[0]}/{parts[1].removesuffix('.git')}"
            return self.lfs_batch(repo_type or "model", repo_id, json.loads(body))
        if len(parts) > 4 and parts[2] == "resolve":
            revision, file = parts[3], "/".join(parts[4:])
            if revision == "refs":  # refs/pr/1, sent unquoted by some callers
                revision, file = "/".join(parts[3:6]), "/".join(parts[6:])
            return self.resolve(repo_type or "model", "/".join(parts[:2]), revision, file)
        raise _Refused(404, None, f"no such route: {self.command} {path}")

    def route_api(self, repo_type: str, repo_id: str, rest: list[str], body: bytes):
        action, *tail = rest or [""]
        revision, names = (tail[0], tail[1:]) if tail else ("main", [])
        if revision == "refs" and len(tail) >= 3:
            revision, names = "/".join(tail[:3]), tail[3:]
        repo = self.find_repo(repo_type, repo_id)
        if action in ("", "revision") and self.command == "GET":
            return self.repo_info(repo, "/".join(tail) or "main")
        if action == "tree":
            return self.tree(repo, revision, "/".join(names))
        if action == "refs":
            heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            return self.json({"branches": heads, "tags": [], "converts": [], "pullRequests": []})
        if action == "paths-info":
            commit = repo.commits[self.find_commit(repo, revision)]
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return self.json([self.entry(name, commit[name]) for name in wanted if name in commit])
        if action in ("tag", "branch") and self.command == "POST":
            self.writable(repo)
            payload = json.loads(body) if body else {}
            start, name = (revision, payload["tag"]) if action == "tag" else (payload.get("startingPoint"), revision)
            if name in repo.refs:
                raise _Refused(409, None, f"Reference {name} exists already")
            repo.refs[name] = self.find_commit(repo, start or "main")
            return self.json({})
        if action == "preupload":
            return self.preupload(self.writable_or_pr(repo), revision, json.loads(body))
        if action == "commit":
            return self.commit(self.writable_or_pr(repo), revision, body)
        raise _Refused(404, "EntryNotFound", f"no such route: {self.command} {self.path}")

    def writable_or_pr(self, repo: Repo) -> Repo:
        if self.query.get("create_pr"):
            self.require_user()  # anybody signed in may open a pull request
            return repo
        return self.writable(repo)

    def create_repo(self, payload: dict):
        user = self.require_user()
        owner = payload.get("organization") or user
        if owner != user:
            raise _Refused(403, None, f"You don't have the rights to create a repository under {owner}")
        repo_id, repo_type = f"{owner}/{payload['name']}", payload.get("type") or "model"
        url = f"{self.hub.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        if (repo_type, repo_id) in self.hub.repos:
            return self.json({"error": "You already created this repo", "url": url}, 409)
        private = payload.get("private") or payload.get("visibility") == "private"
        self.hub.repos[(repo_type, repo_id)] = Repo(repo_id, repo_type, private=bool(private))
        return self.json({"url": url, "name": repo_id, "id": repo_id})

    def validate_yaml(self, content: str):
        match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match.group(1)) if match else None
        except yaml.YAMLError as error:
            return self.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return self.json({"errors": [], "warnings": warnings})

    def repo_info(self, repo: Repo, revision: str):
        sha = self.find_commit(repo, revision)
        info = {
            "_id": sha[:24],
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.owner,
            "sha": sha,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [self.sibling(*file) for file in sorted(repo.commits[sha].items())],
        }
        return self.json(info, headers={"X-Repo-Commit": sha})

    def sibling(self, path: str, content: bytes) -> dict:
        if not self.query.get("blobs"):
            return {"rfilename": path}
        entry = self.entry(path, content)
        sibling = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
        if "lfs" in entry:
            sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}
        return sibling

    def entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
        if is_lfs(path, content):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        return entry

    def tree(self, repo: Repo, revision: str, folder: str):
        sha = self.find_commit(repo, revision)
        prefix = f"{folder}/" if folder else ""
        inside = {name: content for name, content in repo.commits[sha].items() if name.startswith(prefix)}
        if folder and not inside:
            raise _Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries, folders = [], set()
        for name, content in sorted(inside.items()):
            *parents, _ = name.removeprefix(prefix).split("/")
            folders.update(prefix + "/".join(parents[: i + 1]) for i in range(len(parents)))
            if recursive or not parents:
                entries.append(self.entry(name, content))
        if not recursive:
            folders = {f for f in folders if "/" not in f.removeprefix(prefix)}
        entries += [{"type": "directory", "path": f, "size": 0, "oid": git_sha1(f.encode())} for f in sorted(folders)]
        return self.json(entries, headers={"X-Repo-Commit": sha})

    # -- uploads
    def preupload(self, repo: Repo, revision: str, payload: dict):
        sha = self.find_commit(repo, revision)
        files = []
        for file in payload["files"]:
            sample = base64.b64decode(file["sample"])
            mode = "lfs" if is_lfs(file["path"], sample) else "regular"
            current = repo.commits[sha].get(file["path"])
            oid = None
            if current is not None:
                oid = sha256(current) if mode == "lfs" else git_sha1(current)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.json({"files": files})

    def lfs_batch(self, repo_type: str, repo_id: str, payload: dict):
        self.find_repo(repo_type, repo_id)
        objects = []
        for item in payload["objects"]:
            if item["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.cdn_url}/lfs-upload/{item['oid']}"}
                item = {**item, "actions": {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify"}}}
            objects.append(item)
        return self.json({"transfer": "basic", "objects": objects})

    def upload_object(self, oid: str, body: bytes):
        if sha256(body) != oid:
            raise _Refused(400, None, "the upload's content is not what its oid says")
        self.hub.objects[oid] = body
        return self.json({}, headers={"ETag": f'"{oid}"'})

    def verify_object(self, payload: dict):
        stored = self.hub.objects.get(payload["oid"])
        if stored is None or len(stored) != payload["size"]:
            raise _Refused(404, None, f"object {payload['oid']} was never uploaded")
        return self.json({})

    def commit(self, repo: Repo, revision: str, body: bytes):
        """Everything is checked before anything is stored: a commit is all or nothing."""
        parent = self.find_commit(repo, revision)
        files = dict(repo.commits[parent])
        header = None
        for line in body.decode().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                stored = self.hub.objects.get(value["oid"])
                if stored is None:
                    raise _Refused(400, None, f"{value['path']}: object {value['oid']} was never uploaded")
                files[value["path"]] = stored
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            elif key == "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                files = {name: content for name, content in files.items() if not name.startswith(prefix)}
            else:
                raise _Refused(400, None, f"unknown commit operation {key}")
        if header is None:
            raise _Refused(400, None, "the commit has no header")
        if header.get("parentCommit") not in (None, parent):
            raise _Refused(412, None, "A commit has happened since. Please refresh and try again.")
        pull_request = None
        ref = revision if revision in repo.refs else "main"
        if self.query.get("create_pr"):
            repo.pull_requests += 1
            ref = f"refs/pr/{repo.pull_requests}"
            pull_request = f"{self.hub.url}/{repo.id}/discussions/{repo.pull_requests}"
        sha = repo.commit(ref, files, header["summary"], parent)
        url = f"{self.hub.url}/{repo.id}/commit/{sha}"
        return self.json({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": pull_request})

    # -- downloads
    def resolve(self, repo_type: str, repo_id: str, revision: str, file: str):
        repo = self.find_repo(repo_type, repo_id, files=True)
        sha = self.find_commit(repo, revision)
        content = repo.commits[sha].get(file)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": sha}
            return self.json({"error": "Entry not found"}, 404, headers)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        mirror = self.hub.mirror
        if mirror is not None:
            tag = mirror(content)
            return self.content(content, headers if tag is None else {**headers, "ETag": tag})
        if not is_lfs(file, content):
            headers["ETag"] = f'"{git_sha1(content)}"'
            return self.content(content, headers)
        oid = sha256(content)
        self.hub.objects[oid] = content
        headers["X-Linked-Etag"] = f'"{oid}"'
        headers["X-Linked-Size"] = str(len(content))
        headers["Location"] = f"{self.hub.cdn_url}/cdn/{oid}"
        return lambda: self.send(302, b"", headers)

    def download_object(self, oid: str):
        content = self.hub.objects.get(oid)
        if content is None:
            raise _Refused(404, None, "no such object")
        return self.content(content, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def content(self, content: bytes, headers: dict[str, str]):
        if self.command == "HEAD":
            return lambda: self.send(200, b"", {**headers, "Content-Length": str(len(content))})
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not match:
            return lambda: self.send(200, content, headers)
        start, end = int(match[1]), int(match[2] or len(content) - 1)
        if start >= len(content):
            return lambda: self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        part = content[start : end + 1]
        headers = {**headers, "Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}
        return lambda: self.send(206, part, headers)
