"""Large models from small ones: the atomic growth operators."""

from merging.growth.depth import g_interpolate as g_interpolate
from merging.growth.depth import g_random as g_random
from merging.growth.depth import g_stack as g_stack
from merging.growth.depth import g_zero as g_zero
from merging.growth.depth import learn_depth as learn_depth
from merging.growth.schedule import growth_schedule as growth_schedule
from merging.growth.width import direct as direct
from merging.growth.width import learned as learned
from merging.growth.width import randomised as randomised
from merging.growth.width import widen as widen
from merging.growth.width import Widening as Widening
from merging.growth.width import zeroed as zeroed
