"""All settings, as pydantic-settings reads them out of our layers."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from asyncbg.settings.layer import Layer
from asyncbg.settings.place import layers
from asyncbg.settings.schema import schema_of
from asyncbg.settings.section import (
    AuthSettings,
    DemoSettings,
    JobSettings,
    OutboundSettings,
    PrivacySettings,
    RunnerSettings,
    ServerSettings,
    SmtpSettings,
    StreamSettings,
    UploadSettings,
)
from asyncbg.settings.value import DatabaseUrl, ProfileName


class Settings(BaseSettings):
    """Everything that can be set. Use ``load_settings`` for one-line errors; sections flow down, never the whole."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    profile: ProfileName = "default"
    database_url: DatabaseUrl = Field(default="sqlite:///asyncbg.db", repr=False)
    data_dir: Annotated[Path, BeforeValidator(lambda value: value or None)] = Path("asyncbg-data")
    server: ServerSettings = ServerSettings()
    runner: RunnerSettings = RunnerSettings()
    jobs: JobSettings = JobSettings()
    stream: StreamSettings = StreamSettings()
    smtp: SmtpSettings = SmtpSettings()
    outbound: OutboundSettings = OutboundSettings()
    upload: UploadSettings = UploadSettings()
    auth: AuthSettings = AuthSettings()
    privacy: PrivacySettings = PrivacySettings()
    demo: DemoSettings = DemoSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Our own sources: they refuse what they do not know, and can say where a value came from."""
        found = layers(init_settings(), schema_of(settings_cls))
        return tuple(_LayerSource(settings_cls, layer) for layer in found)


class _LayerSource(PydanticBaseSettingsSource):
    """A layer, as pydantic-settings wants it."""

    def __init__(self, settings_cls: type[BaseSettings], layer: Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def __call__(self) -> dict[str, Any]:
        return self._layer.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._layer.values.get(field_name), field_name, False
