"""Merges as mergekit does; runs in its environment (see `serve`)."""

from mergekit import merge_methods
import serve

# Methods for which a base is no model to merge, and would be taken for one.
_WITHOUT_BASE = ('linear', 'karcher', 'passthrough')


def merge_of(method):
  """Returns the merge of this name: `(base, experts, parameters) -> params`."""

  def merge(base, experts, parameters):
    with_base = parameters.pop('with_base', method not in _WITHOUT_BASE)
    models = {'base': base, **experts} if with_base else experts
    return merge_methods.merge_state_dicts(
      models, method, parameters=parameters, base='base' if with_base else None
    )

  return merge


def order(method, base, experts):
  """Returns for whom and what a method draws, in order."""
  return ((name, path) for path in base for name in experts)


if __name__ == '__main__':
  names = [method.spec.name for method in merge_methods.registered_methods()]
  serve.serve_merges(['mergekit', 'torch'], names, merge_of, order)
