"""The laboratory of lottery tickets: every way to find a small network, in one protocol."""

from latewood.training.tickets.page import write_tickets_page
from latewood.training.tickets.search import search_tickets
from latewood.training.tickets.table import BASELINES, TicketTable

__all__ = ["BASELINES", "TicketTable", "search_tickets", "write_tickets_page"]
