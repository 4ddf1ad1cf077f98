"""What trained models have inside."""

from arithmetic.interpret import fourier as fourier
