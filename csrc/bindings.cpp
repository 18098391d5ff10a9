// Python's view of csrc. Tensors arrive as addresses: fdpo_fast/ops/cpp.py has checked them and keeps them alive, and
// importing one through DLPack would cost 2 us, of a call that takes tens of them on small latents.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>

#include "adamw8bit.h"
#include "loss.h"

namespace nb = nanobind;
using namespace fdpo;
using Address = uintptr_t;
using Triple = std::array<int64_t, 3>;

namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Rows dense_rows(Address data, int dtype, int64_t row_stride) {
  return {at<void>(data), Dtype(dtype), row_stride, {1, 1, INT64_MAX}, {0, 0, 1}};
}

Rows rows(Address data, int dtype, int64_t row_stride, const Triple& sizes, const Triple& strides) {
  Rows out{at<void>(data), Dtype(dtype), row_stride, {}, {}};
  std::copy(sizes.begin(), sizes.end(), out.sizes);
  std::copy(strides.begin(), strides.end(), out.strides);
  return out;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<Kernels>(m, "Kernels").def_prop_ro("name", [](const Kernels& k) { return std::string(k.name); });
  // Those that this processor can run, the widest first.
  m.def("kernels", [] {
    std::vector<const Kernels*> out;
    for (const Kernels* kernels : all_kernels())
      if (kernels->supported()) out.push_back(kernels);
    return out;
  }, nb::rv_policy::reference);

  nb::class_<Rows>(m, "Rows").def(nb::new_(&dense_rows)).def(nb::new_(&rows));

  m.def("loss_forward", [](const Kernels& kernels, int threads, int64_t pairs, int64_t n, bool interleaved,
                           const Rows& pred, const Rows& ref, Address ref_errors, const Rows& target, Address draws,
                           Address weight, std::array<double, 5> link, std::array<double, 4> type, double beta,
                           double ratio_scale, double share, bool reduce, Address loss, Address accuracy, Address stats,
                           const Rows& grad, float upstream) {
    nb::gil_scoped_release release;
    loss_forward(kernels,
                 {.pairs = {pairs, n, interleaved},
                  .pred = pred,
                  .ref = ref,
                  .target = target,
                  .grad = grad,
                  .ref_errors = at<const double>(ref_errors),
                  .draws = {at<const int64_t>(draws), pairs},
                  .weight = at<const float>(weight),
                  .link = {link[0], link[1], link[2], link[3], link[4]},
                  .type = {type[0], type[1], type[2], type[3]},
                  .beta = beta,
                  .ratio_scale = ratio_scale,
                  .share = share,
                  .upstream = upstream,
                  .reduce = reduce,
                  .loss = at<float>(loss),
                  .accuracy = at<float>(accuracy),
                  .stats = at<float>(stats)},
                 threads);
  });

  m.def("loss_backward", [](const Kernels& kernels, int threads, int64_t pairs, int64_t n, bool interleaved,
                            const Rows& pred, const Rows& target, Address draws, Address coefficients,
                            Address grad_loss, int64_t grad_loss_stride, const Rows& grad) {
    nb::gil_scoped_release release;
    loss_backward(kernels, {pairs, n, interleaved}, pred, target, {at<const int64_t>(draws), pairs},
                  at<const float>(coefficients), at<const float>(grad_loss), grad_loss_stride, grad, threads);
  });

  m.def("add_noise", [](const Kernels& kernels, int threads, int64_t pairs, int64_t n, bool interleaved,
                        Address draws, const Rows& x, Address signal, Address sigma, int64_t timesteps,
                        const Rows& out, Address drawn) {
    nb::gil_scoped_release release;
    add_noise(kernels, {pairs, n, interleaved}, {at<const int64_t>(draws), pairs}, x, at<const float>(signal),
              at<const float>(sigma), timesteps, out, at<int64_t>(drawn), threads);
  });

  m.def("normals", [](const Kernels& kernels, int threads, int64_t rows, int64_t count, Address draws, Address out) {
    nb::gil_scoped_release release;
    normals(kernels, {at<const int64_t>(draws), rows}, rows, count, at<float>(out), threads);
  });

  nb::class_<Maps>(m, "Maps").def(nb::new_([](Address m, Address v) {
    return Maps{*at<const Map>(m), *at<const Map>(v)};
  }));
  nb::class_<Parameter>(m, "Parameter")
      .def(nb::new_([](Address data, int dtype, Address grad, int grad_dtype, std::array<Address, 2> states,
                       std::array<Address, 2> absmax, Address copy, int64_t count, bool stochastic, uint64_t seed,
                       uint64_t index, uint32_t step, uint32_t stream, uint64_t first, std::array<float, 7> rates) {
        return Parameter{.data = at<void>(data),
                         .dtype = Dtype(dtype),
                         .grad = at<const void>(grad),
                         .grad_dtype = Dtype(grad_dtype),
                         .m = at<void>(states[0]),
                         .v = at<void>(states[1]),
                         .absmax_m = at<float>(absmax[0]),
                         .absmax_v = at<float>(absmax[1]),
                         .copy = at<uint16_t>(copy),
                         .count = count,
                         .stochastic = stochastic,
                         .seed = seed,
                         .index = index,
                         .step = step,
                         .stream = stream,
                         .first = first,
                         .rates = {rates[0], rates[1], rates[2], rates[3], rates[4], rates[5], rates[6]}};
      }));
  m.def("adamw8bit", [](const Kernels& kernels, const Maps& maps, const std::vector<Parameter>& parameters,
                        int threads) {
    nb::gil_scoped_release release;
    adamw8bit(kernels, maps, parameters.data(), int64_t(parameters.size()), threads);
  });

  // Words of Philox4x32-10 at 16 counters, [4, 16] in place: for its known answers.
  m.def("philox", [](const Kernels& kernels, Address words, uint32_t k0, uint32_t k1) {
    kernels.philox(at<uint32_t>(words), k0, k1);
  });
}
