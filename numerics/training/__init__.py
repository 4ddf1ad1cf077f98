"""Training in low precision: products of both passes, and fake quantisation."""
