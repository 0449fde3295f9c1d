"""Retrievers: which skills a task's teacher (or student) is told, one file each."""

from sdar.retrievers.fact import FactRetriever as FactRetriever
from sdar.retrievers.full import FullRetriever as FullRetriever
from sdar.retrievers.keywords import KeywordRetriever as KeywordRetriever
from sdar.retrievers.no import NoRetriever as NoRetriever
from sdar.retrievers.random_choice import RandomRetriever as RandomRetriever
from sdar.retrievers.routed import RoutedRetriever as RoutedRetriever
from sdar.retrievers.shuffled import ShuffledRetriever as ShuffledRetriever
from sdar.retrievers.ucb import UCBRetriever as UCBRetriever
