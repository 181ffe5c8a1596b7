"""The event bus: publishes committed events to the streams, handlers and waiters of this process without blocking."""

from asyncbg.bus.event_bus import BusStatistics, EventBus
from asyncbg.bus.handler import Handler
from asyncbg.bus.subscription import Chunk, Published, Subscription

__all__ = ["BusStatistics", "Chunk", "EventBus", "Handler", "Published", "Subscription"]
