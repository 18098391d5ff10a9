// Python's view of csrc. Shapes, dtypes and devices are checked by the ndarray types; meaning is checked in Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "noise.h"

namespace nb = nanobind;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

NB_MODULE(_native, m) {
  m.def(
      "normals",
      [](uint64_t seed, Ids pair_ids, Ids visits, Matrix out, int threads) {
        if (pair_ids.shape(0) != out.shape(0) || visits.shape(0) != out.shape(0))
          throw std::invalid_argument("normals: pair_ids, visits and out must have the same number of rows");
        nb::gil_scoped_release release;
        fdpo::normals(seed, pair_ids.data(), visits.data(), int64_t(out.shape(0)), int64_t(out.shape(1)), out.data(),
                      threads);
      },
      nb::arg("seed"), nb::arg("pair_ids").noconvert(), nb::arg("visits").noconvert(), nb::arg("out").noconvert(),
      nb::arg("threads"));
}
