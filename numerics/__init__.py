"""Function transformations and formats for low-precision arithmetic."""

from numerics import functions
from numerics import integer
from numerics.blocks import BlockFormat
from numerics.blocks import dfp16
from numerics.blocks import mxfp4_e2m1
from numerics.blocks import mxfp6_e2m3
from numerics.blocks import mxfp6_e3m2
from numerics.blocks import mxfp8_e4m3
from numerics.blocks import mxfp8_e5m2
from numerics.blocks import mxint8
from numerics.blocks import nvfp4
from numerics.bounding import Interval
from numerics.bounding import interval
from numerics.calibration import learned_rounding
from numerics.calibration import mse_scale
from numerics.counting import count
from numerics.counting import HOROWITZ_45NM
from numerics.emulation import emulate
from numerics.fixed_point import FixedPoint
from numerics.fixed_point import int2
from numerics.fixed_point import int4
from numerics.fixed_point import int8
from numerics.fixed_point import int16
from numerics.fixed_point import uint2
from numerics.fixed_point import uint4
from numerics.fixed_point import uint8
from numerics.fixed_point import uint16
from numerics.formats import bfloat16
from numerics.formats import float4_e2m1fn
from numerics.formats import float6_e2m3fn
from numerics.formats import float6_e3m2fn
from numerics.formats import float8_e3m4
from numerics.formats import float8_e4m3
from numerics.formats import float8_e4m3b11fnuz
from numerics.formats import float8_e4m3fn
from numerics.formats import float8_e4m3fnuz
from numerics.formats import float8_e5m2
from numerics.formats import float8_e5m2fnuz
from numerics.formats import float16
from numerics.formats import Format
from numerics.formats import tfloat32
from numerics.interpreter import transform
from numerics.multiply.bit_planes import BitPlanes
from numerics.multiply.bit_weight import BitWeight
from numerics.multiply.bit_weight import booth_digits
from numerics.multiply.bit_weight import carry_save
from numerics.multiply.bit_weight import digit_shares
from numerics.multiply.exact import IntegerDot
from numerics.multiply.integer_product import IntegerProduct
from numerics.multiply.linear_complexity import LMul
from numerics.multiply.linear_complexity import lmul
from numerics.multiply.lut_tensor_core import LutTensorCore
from numerics.multiply.modular import Barrett
from numerics.multiply.modular import ModularDot
from numerics.multiply.multiplier import Multiplier
from numerics.multiply.scaled import quantized_dot
from numerics.multiply.shift_add import ShiftAdd
from numerics.multiply.t_mac import TMac
from numerics.number_format import NumberFormat
from numerics.outliers import OutlierPairs
from numerics.outliers import OutlierProduct
from numerics.policies import Override
from numerics.policies import Policy
from numerics.policies import Precision
from numerics.products import contract
from numerics.products import Product
from numerics.promotion import promote
from numerics.quantizing import dequantize
from numerics.quantizing import fake_quantize
from numerics.quantizing import quantize
from numerics.quantizing import Quantized
from numerics.ranging import ranges
from numerics.rounding import round_to
from numerics.rounding import ulp
from numerics.scaling import absmax_scale
from numerics.scaling import affine_scale
from numerics.sensitivities import Sensitivity
from numerics.sensitivities import sensitivity
from numerics.shadowing import shadow
from numerics.sums import Accumulator
from numerics.training.aware import ActivationRanges
from numerics.training.aware import quantization_aware
from numerics.training.aware import QuantizationAware
from numerics.training.binary_points import k_hot
from numerics.training.binary_points import learned_fixed_point
from numerics.training.dynamic_fixed_point import DynamicFixedPoint
from numerics.training.quartet import Quartet

__all__ = [
  'HOROWITZ_45NM',
  'Accumulator',
  'ActivationRanges',
  'Barrett',
  'BitPlanes',
  'BitWeight',
  'BlockFormat',
  'DynamicFixedPoint',
  'FixedPoint',
  'Format',
  'IntegerDot',
  'IntegerProduct',
  'Interval',
  'LMul',
  'LutTensorCore',
  'ModularDot',
  'Multiplier',
  'NumberFormat',
  'OutlierPairs',
  'OutlierProduct',
  'Override',
  'Policy',
  'Precision',
  'Product',
  'QuantizationAware',
  'Quantized',
  'Quartet',
  'Sensitivity',
  'ShiftAdd',
  'TMac',
  'absmax_scale',
  'affine_scale',
  'bfloat16',
  'booth_digits',
  'carry_save',
  'contract',
  'count',
  'dequantize',
  'dfp16',
  'digit_shares',
  'emulate',
  'fake_quantize',
  'float4_e2m1fn',
  'float6_e2m3fn',
  'float6_e3m2fn',
  'float8_e3m4',
  'float8_e4m3',
  'float8_e4m3b11fnuz',
  'float8_e4m3fn',
  'float8_e4m3fnuz',
  'float8_e5m2',
  'float8_e5m2fnuz',
  'float16',
  'functions',
  'int2',
  'int4',
  'int8',
  'int16',
  'integer',
  'interval',
  'k_hot',
  'learned_fixed_point',
  'learned_rounding',
  'lmul',
  'mse_scale',
  'mxfp4_e2m1',
  'mxfp6_e2m3',
  'mxfp6_e3m2',
  'mxfp8_e4m3',
  'mxfp8_e5m2',
  'mxint8',
  'nvfp4',
  'promote',
  'quantization_aware',
  'quantize',
  'quantized_dot',
  'ranges',
  'round_to',
  'sensitivity',
  'shadow',
  'tfloat32',
  'transform',
  'uint2',
  'uint4',
  'uint8',
  'uint16',
  'ulp',
]
