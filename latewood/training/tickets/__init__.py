"""The laboratory of lottery tickets: every way to find a small network, in one protocol."""

from latewood.training.tickets.search import BASELINES, TicketTable, search_tickets

__all__ = ["BASELINES", "TicketTable", "search_tickets"]
