// Python's view of csrc. Tensors arrive as addresses: fdpo_fast/ops/cpp.py has checked them and keeps them alive, and
// importing one through DLPack would cost 2 us, of a call that takes tens of them on small latents. Every value has a
// name on the way. An address has the type of what lies there: in the calls of the loss two of other types that change
// places do not compile. The optimizer's come as columns.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>

#include "schedule/adamw8bit.h"
#include "schedule/loss.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace fdpo;
using Triple = std::array<int64_t, 3>;

namespace {

// The address of a tensor's first element, an integer in Python; 0 for no tensor.
template <class T>
struct At {
  T* address;
  operator T*() const { return address; }
};

// Of pairs there are, every tensor has memory: one whose storage was freed, or a wrapper without, has not. Tensors that
// may be missing are looked at in Python.
void check_memory(const Pairs& pairs, std::initializer_list<const void*> tensors) {
  for (const void* address : tensors)
    if (!address && pairs.pairs) throw nb::value_error("a tensor of the loss has no memory: it was freed");
}

std::vector<std::string> names(const auto& table) { return {std::begin(table), std::end(table)}; }

nb::dict constants() {
  nb::dict out;
  out["exp_cap"] = kExpCap;
  out["state_block"] = kStateBlock;
  out["dtypes"] = names(kDtypes);
  out["streams"] = names(kStreams);
  out["stats"] = names(kStats);
  return out;
}

Layout dense(int dtype, int64_t row_stride) { return {Dtype(dtype), row_stride, {1, 1, INT64_MAX}, {0, 0, 1}}; }

Layout strided(int dtype, int64_t row_stride, const Triple& sizes, const Triple& strides) {
  Layout out{Dtype(dtype), row_stride, {}, {}};
  std::copy(sizes.begin(), sizes.end(), out.sizes);
  std::copy(strides.begin(), strides.end(), out.strides);
  return out;
}

// How the tensors of a call lie: one object for all calls with the like, as making it anew would cost 2 us.
struct Batch {
  Pairs pairs;
  Layout samples, ref, data, out;
  bool predicted;  // ref is given by predictions, not by errors

  Rows rows(const Layout& layout, const void* data) const { return {layout, const_cast<void*>(data)}; }

  Target target(const int64_t* draws, const void* address, const float* on) const {
    return {rows(data, address), {draws, pairs.pairs}, on};
  }
};

Batch batch(int64_t pairs, int64_t elements, bool interleaved, const Layout& samples, const Layout* ref,
            const Layout* data, const Layout& out) {
  return {{pairs, elements, interleaved}, samples, ref ? *ref : Layout{}, data ? *data : Layout{}, out, ref != nullptr};
}

// A column of addresses, one for each parameter; empty for tensors that none of them has.
using Column = std::vector<int64_t>;

template <class T>
T* at(const Column& column, size_t i) {
  return column.empty() ? nullptr : reinterpret_cast<T*>(column.at(i));
}

}  // namespace

namespace nanobind::detail {
template <class T>
struct type_caster<At<T>> {
  NB_TYPE_CASTER(At<T>, const_name("int"))

  bool from_python(handle source, uint8_t flags, cleanup_list* cleanup) noexcept {
    make_caster<uintptr_t> integer;
    if (!integer.from_python(source, flags, cleanup)) return false;
    value = {reinterpret_cast<T*>(integer.value)};
    return true;
  }
};
}  // namespace nanobind::detail

NB_MODULE(_native, m) {
  m.def("constants", &constants);

  nb::class_<Kernels>(m, "Kernels").def_prop_ro("name", [](const Kernels& k) { return std::string(k.name); });
  // Those that this processor can run, the widest first.
  m.def(
      "kernels",
      [] {
        std::vector<const Kernels*> out;
        for (const Kernels* kernels : all_kernels())
          if (kernels->supported()) out.push_back(kernels);
        return out;
      },
      nb::rv_policy::reference);

  nb::class_<Layout>(m, "Layout")
      .def(nb::new_(&dense), nb::kw_only(), "dtype"_a, "row_stride"_a)
      .def(nb::new_(&strided), nb::kw_only(), "dtype"_a, "row_stride"_a, "sizes"_a, "strides"_a);
  nb::class_<Batch>(m, "Batch")
      .def(nb::new_(&batch), nb::kw_only(), "pairs"_a, "elements"_a, "interleaved"_a, "samples"_a, "ref"_a.none(),
           "data"_a.none(), "out"_a);
  nb::class_<Objective>(m, "Objective")
      .def(nb::new_([](std::array<double, 4> link, std::array<double, 4> loss_type, double beta, double ratio_scale,
                       bool reduce, bool mean, std::optional<double> may_undo, double sft_weight, double offset,
                       std::optional<double> clip_log_ratio) {
             constexpr double kNone = std::numeric_limits<double>::infinity();
             return Objective{{link[0], link[1], link[2], link[3], clip_log_ratio.value_or(kNone)},
                              {loss_type[0], loss_type[1], loss_type[2], loss_type[3]},
                              beta,
                              ratio_scale,
                              reduce,
                              mean,
                              may_undo,
                              sft_weight,
                              offset};
           }),
           nb::kw_only(), "link"_a, "loss_type"_a, "beta"_a, "ratio_scale"_a, "reduce"_a, "mean"_a, "may_undo"_a.none(),
           "sft_weight"_a, "offset"_a, "clip_log_ratio"_a.none());

  m.def(
      "loss_forward",
      [](const Kernels& kernels, int threads, const Batch& batch, const Objective& objective, At<const void> pred,
         At<const void> ref, At<const int64_t> draws, At<const void> data, At<const float> on, At<const float> weight,
         float upstream, At<float> loss, At<float> stats, At<void> grad) {
        check_memory(batch.pairs, {pred.address, ref.address});
        nb::gil_scoped_release release;
        const void* ref_errors = batch.predicted ? nullptr : ref.address;
        loss_forward(kernels,
                     {.pairs = batch.pairs,
                      .pred = batch.rows(batch.samples, pred),
                      .ref = batch.rows(batch.ref, batch.predicted ? ref.address : nullptr),
                      .grad = batch.rows(batch.out, grad),
                      .ref_errors = static_cast<const double*>(ref_errors),
                      .target = batch.target(draws, data, on),
                      .weight = weight,
                      .objective = objective,
                      .upstream = upstream,
                      .loss = loss,
                      .stats = stats},
                     threads);
      },
      nb::kw_only(), "kernels"_a, "threads"_a, "batch"_a, "objective"_a, "pred"_a, "ref"_a, "draws"_a, "data"_a, "on"_a,
      "weight"_a, "upstream"_a, "loss"_a, "stats"_a, "grad"_a);

  m.def(
      "loss_backward",
      [](const Kernels& kernels, int threads, const Batch& batch, At<const void> pred, At<const int64_t> draws,
         At<const void> data, At<const float> on, At<const float> coefficients, At<const float> grad_loss,
         int64_t grad_loss_stride, At<void> grad) {
        check_memory(batch.pairs, {pred.address});
        nb::gil_scoped_release release;
        loss_backward(kernels, batch.pairs, batch.rows(batch.samples, pred), batch.target(draws, data, on),
                      coefficients, grad_loss, grad_loss_stride, batch.rows(batch.out, grad), threads);
      },
      nb::kw_only(), "kernels"_a, "threads"_a, "batch"_a, "pred"_a, "draws"_a, "data"_a, "on"_a, "coefficients"_a,
      "grad_loss"_a, "grad_loss_stride"_a, "grad"_a);

  m.def(
      "add_noise",
      [](const Kernels& kernels, int threads, const Batch& batch, At<const int64_t> draws, At<const void> latents,
         At<const float> signal, At<const float> sigma, At<const int64_t> density, int64_t num_timesteps,
         At<void> noisy, At<int64_t> timesteps) {
        check_memory(batch.pairs, {draws.address, latents.address, signal.address, sigma.address});
        nb::gil_scoped_release release;
        add_noise(kernels, batch.pairs, {draws, batch.pairs.pairs}, batch.rows(batch.samples, latents),
                  {signal, sigma, density, num_timesteps}, batch.rows(batch.out, noisy), timesteps, threads);
      },
      nb::kw_only(), "kernels"_a, "threads"_a, "batch"_a, "draws"_a, "latents"_a, "signal"_a, "sigma"_a, "density"_a,
      "num_timesteps"_a, "noisy"_a, "timesteps"_a);

  m.def(
      "normals",
      [](const Kernels& kernels, int threads, int64_t rows, int64_t count, At<const int64_t> draws, At<float> out) {
        nb::gil_scoped_release release;
        normals(kernels, {draws, rows}, rows, count, out, threads);
      },
      nb::kw_only(), "kernels"_a, "threads"_a, "rows"_a, "count"_a, "draws"_a, "out"_a);

  nb::class_<Maps>(m, "Maps").def(
      nb::new_([](At<const Map> m, At<const Map> v) { return Maps{*m.address, *v.address}; }), nb::kw_only(), "m"_a,
      "v"_a);
  nb::class_<Rule>(m, "Rule").def(
      nb::new_([](std::array<float, 7> rates, bool stochastic, uint64_t seed, uint32_t step, uint64_t first) {
        const auto [beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps] = rates;
        return Rule{
            {beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps}, stochastic, seed, step, first};
      }),
      nb::kw_only(), "rates"_a, "stochastic"_a, "seed"_a, "step"_a, "first"_a);
  m.def(
      "adamw8bit",
      [](const Kernels& kernels, int threads, const Maps& maps, int dtype, int grad_dtype, const Column& data,
         const Column& grad, const Column& m, const Column& v, const Column& absmax_m, const Column& absmax_v,
         const Column& copy, const Column& low, const Column& counts, const Column& indices, const Column& rule_of,
         const std::vector<Rule>& rules) {
        std::vector<Parameter> parameters;
        parameters.reserve(data.size());
        for (size_t i = 0; i < data.size(); ++i)
          parameters.push_back({.data = at<void>(data, i),
                                .dtype = Dtype(dtype),
                                .grad = at<const void>(grad, i),
                                .grad_dtype = Dtype(grad_dtype),
                                .m = at<void>(m, i),
                                .v = at<void>(v, i),
                                .absmax_m = at<float>(absmax_m, i),
                                .absmax_v = at<float>(absmax_v, i),
                                .copy = at<uint16_t>(copy, i),
                                .low = at<int8_t>(low, i),
                                .count = counts.at(i),
                                .index = uint64_t(indices.at(i)),
                                .rule = &rules.at(size_t(rule_of.at(i)))});
        nb::gil_scoped_release release;
        adamw8bit(kernels, maps, parameters.data(), int64_t(parameters.size()), threads);
      },
      nb::kw_only(), "kernels"_a, "threads"_a, "maps"_a, "dtype"_a, "grad_dtype"_a, "data"_a, "grad"_a, "m"_a, "v"_a,
      "absmax_m"_a, "absmax_v"_a, "copy"_a, "low"_a, "counts"_a, "indices"_a, "rule_of"_a, "rules"_a);

  // Words of Philox4x32-10 at 16 counters, [4, 16] in place: for its known answers.
  m.def("philox",
        [](const Kernels& kernels, At<uint32_t> words, uint32_t k0, uint32_t k1) { kernels.philox(words, k0, k1); });
}
