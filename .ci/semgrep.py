# Bad examples: each rule of semgrep.yml must find the line below its "ruleid", and nothing at an "ok".

# ruleid: no-pickle
import pickle
# ruleid: no-pickle
from marshal import loads
# ok: no-pickle
import json

# ruleid: no-eval
eval("1 + 1")
# ruleid: no-eval
exec(text)
# ok: no-eval
re.compile("x")

# ruleid: no-import-by-string
importlib.import_module(name)
# ruleid: no-import-by-string
__import__(name)
# ok: no-import-by-string
from importlib.metadata import version

# ruleid: no-naive-datetime
datetime.now()
# ruleid: no-naive-datetime
datetime.utcnow()
# ruleid: no-naive-datetime
datetime.fromtimestamp(seconds)
# ruleid: no-naive-datetime
datetime(2026, 11, 26)
# ok: no-naive-datetime
datetime.now(UTC)
# ok: no-naive-datetime
datetime(1970, 1, 1, tzinfo=UTC)
# ok: no-naive-datetime
datetime.fromtimestamp(seconds, UTC)

# ruleid: no-sql-from-text
connection.execute(f"DELETE FROM job WHERE id = '{job_id}'")
# ruleid: no-sql-from-text
connection.execute("DELETE FROM job WHERE id = " + job_id)
# ruleid: no-sql-from-text
connection.execute("DELETE FROM job WHERE id = '%s'" % job_id)
# ruleid: no-sql-from-text
connection.executemany("DELETE FROM {}".format(table), rows)
# ok: no-sql-from-text
connection.execute("DELETE FROM job WHERE id = ?", (job_id,))

# ruleid: no-shell
subprocess.run(command, shell=True)
# ruleid: no-shell
os.system(command)
# ok: no-shell
subprocess.run(["ls"], check=True)

# ruleid: no-yaml-load
yaml.load(text)
# ok: no-yaml-load
tomllib.loads(text)

# ruleid: no-assert
assert job is not None
# ruleid: no-assert
assert job, "there should be one"
# ok: no-assert
assert_never(job)

# ruleid: no-unguarded-http
import requests
# ruleid: no-unguarded-http
from urllib.request import urlopen
# ok: no-unguarded-http
from urllib.parse import urlsplit

# ruleid: no-weak-hash
hashlib.md5(data)
# ruleid: no-weak-hash
hashlib.new("sha1", data)
# ok: no-weak-hash
hashlib.sha256(data)

# ruleid: no-unverified-tls
session.get(url, ssl=False)
# ruleid: no-unverified-tls
context.check_hostname = False
# ok: no-unverified-tls
session.get(url, ssl=context)

# ruleid: no-temp-name
tempfile.mktemp()
# ok: no-temp-name
tempfile.mkstemp()

# ruleid: no-archive-extraction
archive.extractall(place)
# ok: no-archive-extraction
archive.read(name)

# ruleid: no-open-cors
from fastapi.middleware.cors import CORSMiddleware
# ruleid: no-open-cors
headers = {"Access-Control-Allow-Origin": "*"}
# ok: no-open-cors
headers = {"Cross-Origin-Resource-Policy": "same-origin"}

# ruleid: no-xml
import xml.etree.ElementTree
# ruleid: no-xml
from xml.dom import minidom
# ok: no-xml
from html.parser import HTMLParser

# ruleid: no-stream-wrapping-middleware
from starlette.middleware.base import BaseHTTPMiddleware
# ruleid: no-stream-wrapping-middleware
@app.middleware("http")
async def wrap(request, call_next): ...
# ok: no-stream-wrapping-middleware
app.add_middleware(AuthMiddleware)
