"""A user's password where it is used: in a URL, a data source name, on a command line, in a call."""

import re
from itertools import islice

from asyncbg.privacy.patterns.secret_heuristics import is_placeholder
from asyncbg.privacy.pseudonym import SECRET

_STANDS_FOR_ONE = (  # `ada:***@`, `ada:${PASSWORD}@`
    r"(?:[*x•.]{3,}+|\$\{?\w++\}?|\$\([\w ]++\)|<[^\s<>@]{1,40}+>|\{\w{0,40}+\}|%\(?\w{0,40}+\)?s|\[\w{1,40}+])@"
)
_USERINFO = re.compile(
    rf"""(?<=://)(?!(?:git|hg|svn|anonymous)@|[^\s/?\#"'<>`:@]*+:{_STANDS_FOR_ONE})[^\s\0-\x08/?\#"'<>`]+@"""
)
_LOGIN = re.compile(  # `ada:hunter2@10.0.0.5`, `ada:hunter2@db:3306`, `ada:hunter2@tcp(db)`
    rf""":(?!{_STANDS_FOR_ONE})[^\s:@/'"\0-\x08]{{1,128}}+@"""
    r"""(?=\d{1,3}(?:\.\d{1,3}){3}|[\w.-]{1,255}+:\d{2,5}\b|(?:tcp|udp|unix)\()"""
)
_ORACLE = re.compile(r"""(?<=\w/)[^\s/@"'\0-\x08]{1,128}+(?=@)""")  # `thin:ada/hunter2@//db:1521/prod`
_CURL = re.compile(
    r"""([ ]-u[ ]|--(?:proxy-)?user[ =])(?!\d+:\d+\b|["']?\$)
    (?:'[^'\n:]{1,64}+:[^'\n]{1,128}+'|"[^"\n:]{1,64}+:[^"\n]{1,128}+"|[^\s:\-"'\0-\x08]++:[^\s"'\0-\x08]++)""",
    re.VERBOSE,
)
_CALL = re.compile(  # `HTTPBasicAuth('ada', 'hunter2')`, `auth=('ada', 'hunter2')`
    r"""(auth=?\((?:login=|username=)?['"][^'"\n]{1,64}+['"],\s?(?:password=)?['"])[^'"\n\0-\x08]{1,128}+""",
    re.IGNORECASE,
)
_TOOL = re.compile(r"sshpass|mysql|mariadb|mongo|redis-cli|ldap|docker login|smbclient")
_FLAG = {  # the password on the command line of each
    "sshpass": r" -p ?", "mysql": r" -p", "mariadb": r" -p", "mongo": r" -p ?", "redis-cli": r" -a ?", "ldap": r" -w ?",
    "docker login": r" -p ?", "smbclient": r" -U [^\s%]{1,64}%",
}  # fmt: skip
_FLAGS = {tool: re.compile(rf"""[^|;&\n]{{0,120}}?{flag}(?P<value>'[^'\n]+'|"[^"\n]+"|[^\s'"\-\0-\x08][^\s'"]*+)""")
          for tool, flag in _FLAG.items()}  # fmt: skip
_MOST_TOOLS = 20  # a text with more of them is no log line


def hide_logins(text: str, lower: str) -> str:
    """``user:password`` before the host it is for, or given to a command."""
    if "@" in text:
        if "://" in text:
            text = _USERINFO.sub(f"{SECRET}@", text)
        if ":" in text:
            text = _LOGIN.sub(f":{SECRET}@", text)
        if "oracle" in lower or "sqlplus" in lower:
            text = _ORACLE.sub(SECRET, text)
    if " -" in text:
        if " -u " in text or "user" in text:
            text = _CURL.sub(rf"\1{SECRET}", text)
        text = _hide_flags(text)
    return _CALL.sub(rf"\1{SECRET}", text) if "auth" in lower and "(" in text else text


def _hide_flags(text: str) -> str:
    """``sshpass -p hunter2``: what these commands take for a password."""
    pieces: list[str] = []
    done = 0
    for tool in islice(_TOOL.finditer(text), _MOST_TOOLS):
        given = _FLAGS[tool[0]].match(text, tool.end()) if tool.start() >= done else None
        if given and not is_placeholder(given["value"].strip("'\"")):
            pieces += text[done : given.start("value")], SECRET
            done = given.end()
    return "".join([*pieces, text[done:]]) if pieces else text
