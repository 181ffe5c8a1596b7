"""The settings, their bounds and defaults, and where values come from.

Precedence: arguments > environment > ``.env`` > secrets directory > profile file > the defaults below.
A setting's variable is ``ASYNCBG_`` and its path in upper case, joined by ``__``: ``server.port`` is
``ASYNCBG_SERVER__PORT``.
"""

from asyncbg.settings.load import SettingSource, load_engine_settings, load_settings, setting_sources
from asyncbg.settings.model import (
    ApiKey,
    AuthSettings,
    DemoSettings,
    JobSettings,
    OutboundSettings,
    PrivacySettings,
    RunnerSettings,
    ServerSettings,
    Settings,
    SmtpSettings,
    StreamSettings,
    UploadSettings,
)

__all__ = [
    "ApiKey",
    "AuthSettings",
    "DemoSettings",
    "JobSettings",
    "OutboundSettings",
    "PrivacySettings",
    "RunnerSettings",
    "ServerSettings",
    "SettingSource",
    "Settings",
    "SmtpSettings",
    "StreamSettings",
    "UploadSettings",
    "load_engine_settings",
    "load_settings",
    "setting_sources",
]
