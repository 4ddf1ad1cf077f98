"""Searches that need scores only, no gradients: ask, score, tell."""

from merging.search.ask_tell import maximize as maximize
from merging.search.ask_tell import Search as Search
from merging.search.greedy import greedy_soup as greedy_soup
from merging.search.greedy import GreedyState as GreedyState
