"""The laboratory of lottery tickets: every way to find a small network, in one protocol."""

from latewood.studies.tickets.ticket_page import write_tickets_page
from latewood.studies.tickets.ticket_search import search_tickets
from latewood.studies.tickets.ticket_table import BASELINES, TicketTable

__all__ = ["BASELINES", "TicketTable", "search_tickets", "write_tickets_page"]
