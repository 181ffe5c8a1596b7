"""The event bus: what has committed is told to streams, handlers and waiters of this process; none can hold it up."""

from asyncbg.bus.event_bus import BusStatistics, EventBus
from asyncbg.bus.handler import Handler
from asyncbg.bus.subscription import Chunk, Published, Subscription

__all__ = ["BusStatistics", "Chunk", "EventBus", "Handler", "Published", "Subscription"]
