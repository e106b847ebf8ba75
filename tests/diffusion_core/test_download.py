"""Downloads: digests that know what they digest, and files put aside under a name that says why."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from diffusion_core import download


def test_content_digest_knows_names_types_shapes_and_values():
    values = np.arange(6, dtype=np.float32)
    digest = download.content_sha256({"a": values})
    assert digest == hashlib.sha256(b"a <f4 (6,)\n" + values.tobytes()).hexdigest()
    assert digest == download.content_sha256({"a": values.astype(">f4")})
    different = [{"b": values}, {"a": values.reshape(2, 3)}, {"a": values.view(np.int32)}, {"a": values + 1}]
    assert len({digest, *map(download.content_sha256, different)}) == 5


def test_put_aside(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"wrong")
    digest = hashlib.sha256(b"wrong").hexdigest()
    assert download.file_sha256(tmp_path / "a.gz") == digest
    assert f"a.gz.bad-{digest[:8]}" in download.put_aside(tmp_path / "a.gz")
    assert [p.name for p in tmp_path.iterdir()] == [f"a.gz.bad-{digest[:8]}"]


class Short(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"half")

    def log_message(self, format, *args):
        pass


def test_half_a_download_never_stands_at_its_target(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Short)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with pytest.raises(Exception, match=r"(?i)incomplete|broken"):
            download.retrieve(f"http://127.0.0.1:{server.server_port}/a", tmp_path / "cache/a", "a test")
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "cache/a").exists()
