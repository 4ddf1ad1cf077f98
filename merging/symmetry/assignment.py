"""The linear assignment problem, solved exactly."""

import numpy as np


def solve(cost: np.ndarray) -> np.ndarray:
  """Pairs rows with columns at the least total cost.

  Rows are paired one at a time, along the shortest augmenting path in reduced
  costs (Dijkstra's algorithm with the dual variables as potentials). The number
  of steps is cubic in the number of rows; a step works on whole rows.

  Args:
    cost: Cost of each pair, `f64[n, n]`.

  Returns:
    The column of each row, a permutation `i64[n]`.

  Raises:
    ValueError: The matrix is not square, or not finite.

  Examples:
    >>> solve(np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
    array([1, 0, 2])

  References:
    David F. Crouse. "On implementing 2D rectangular assignment algorithms".
    IEEE Transactions on Aerospace and Electronic Systems 2016.
  """
  cost = np.asarray(cost, np.float64)
  if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
    raise ValueError(
      f'assignment: expected a square matrix of costs, got shape {cost.shape}'
    )
  if not np.isfinite(cost).all():
    raise ValueError('assignment: costs hold a NaN or an infinity')
  n = len(cost)
  row_price, column_price = np.zeros(n), np.zeros(n)
  row_of, column_of = np.full(n, -1), np.full(n, -1)
  for start in range(n):
    distance = np.full(n, np.inf)  # Of the shortest path to each column,
    parent = np.full(n, -1)  # and the row it comes from.
    done = np.zeros(n, bool)
    rows = [start]
    row, length = start, 0.0
    while True:
      through = length + cost[row] - row_price[row] - column_price
      shorter = ~done & (through < distance)
      distance[shorter] = through[shorter]
      parent[shorter] = row
      column = int(np.argmin(np.where(done, np.inf, distance)))
      length = distance[column]
      done[column] = True
      if row_of[column] < 0:
        break
      row = int(row_of[column])
      rows.append(row)
    row_price[start] += length
    for each in rows[1:]:
      row_price[each] += length - distance[column_of[each]]
    column_price[done] -= length - distance[done]
    while column >= 0:  # Turn the pairs along the path over.
      row = int(parent[column])
      row_of[column] = row
      column, column_of[row] = int(column_of[row]), column
      if row == start:
        break
  return column_of
