// "standin", a device of PyTorch's PrivateUse1 interface whose memory is ordinary memory and whose kernels are the CPU's.
//
// It behaves as CUDA where code written on a machine without a GPU goes wrong: tensors of two devices refuse to meet, autocast
// has CUDA's lists, host memory is pinned or pageable, and each operation that makes the host wait for the device is told to
// Python, which knows the file and line. It says nothing about speed, streams that race, or cuDNN.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

namespace standin {

using at::IValue;
using at::Tensor;
using c10::Storage;

const c10::Device HOST(c10::kCPU), DEVICE(c10::DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet HOST_KEY(c10::DispatchKey::CPU), DEVICE_KEY(c10::DispatchKey::PrivateUse1);

// ---- what is told: (kind, what), kind one of "wait", "upload", "download", "low precision"

PyObject* listener = nullptr;

void tell(const char* kind, const std::string& what) {
  if (listener == nullptr) return;
  pybind11::gil_scoped_acquire lock;
  pybind11::reinterpret_borrow<pybind11::object>(listener)(kind, what);
}

// ---- memory

std::mutex pins;
std::map<const char*, size_t> pinned_blocks;  // begin and size

void release(void* block) { c10::GetCPUAllocator()->raw_deleter()(block); }

void unpin(void* block) {
  { std::lock_guard<std::mutex> hold(pins); pinned_blocks.erase(static_cast<char*>(block)); }
  release(block);
}

bool is_pinned(const void* at) {
  std::lock_guard<std::mutex> hold(pins);
  auto after = pinned_blocks.upper_bound(static_cast<const char*>(at));
  if (after == pinned_blocks.begin()) return false;
  auto [begin, size] = *std::prev(after);
  return static_cast<const char*>(at) < begin + size;
}

struct Memory final : c10::Allocator {
  const bool pinned;
  explicit Memory(bool pinned) : pinned(pinned) {}
  c10::DataPtr allocate(size_t size) override {
    size = std::max<size_t>(size, 1);
    void* block = c10::GetCPUAllocator()->raw_allocate(size);
    if (!pinned) return {block, block, &release, DEVICE};
    std::lock_guard<std::mutex> hold(pins);
    pinned_blocks[static_cast<char*>(block)] = size;
    return {block, block, &unpin, HOST};
  }
  c10::DeleterFnPtr raw_deleter() const override { return pinned ? &unpin : &release; }
  void copy_data(void* to, const void* from, size_t size) const override { memcpy(to, from, size); }
} device_memory(false), pinned_memory(true);

REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &device_memory);

// ---- one stream, whose work is always done; to wait for it is told

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return DEVICE.type(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<Guard*>(this);  // an event that was recorded is not null
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeEvent(void*) const override { tell("wait", "for an event"); }
  void synchronizeStream(const c10::Stream&) const override { tell("wait", "for a stream"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { tell("wait", "for the device"); }
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void* at) const override { return is_pinned(at); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::globalContext().defaultGenerator(HOST);
  }
  void resizePrivateUse1Bytes(const Storage& storage, size_t size) const override {
    auto data = device_memory.allocate(size);
    memcpy(data.get(), storage.data(), std::min(size, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(size);
  }
};

// ---- the same memory as a tensor of the other device

bool ours(const Tensor& t) { return t.defined() && t.is_privateuseone(); }

Tensor twin(const Tensor& t, c10::Device device) {
  auto* kept = new Tensor(t);
  c10::DataPtr data(t.storage().mutable_data(), kept, [](void* own) { delete static_cast<Tensor*>(own); }, device);
  auto* allocator = device == HOST ? c10::GetCPUAllocator() : &device_memory;
  Storage storage(Storage::use_byte_size_t(), t.storage().nbytes(), std::move(data), allocator, /*resizable=*/true);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), device == HOST ? HOST_KEY : DEVICE_KEY, t.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

Tensor on_host(const Tensor& t) { return ours(t) ? twin(t, HOST) : t; }
Tensor on_device(const Tensor& t) { return t.defined() ? twin(t, DEVICE) : t; }

template <typename Change>
IValue each_tensor(const IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    auto list = value.toTensorVector();
    for (auto& t : list) t = change(t);
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const auto& t : value.toOptionalTensorVector()) list.push_back(t ? std::make_optional(change(*t)) : t);
    return list;
  }
  return value;
}

// The device's tensors of one call as the CPU's kernel sees them, and what the kernel returns as the caller sees it.
struct Lending {
  std::vector<std::pair<Tensor, Tensor>> pairs;  // host twin, the device's tensor
  std::unordered_map<c10::TensorImpl*, Tensor> tensors;
  std::unordered_map<c10::StorageImpl*, Tensor> owners;  // by the twin's storage

  Tensor lend(const Tensor& t) {
    if (!ours(t)) return t;
    Tensor host = on_host(t);
    pairs.emplace_back(host, t);
    tensors.emplace(host.unsafeGetTensorImpl(), t);
    owners.emplace(host.storage().unsafeGetStorageImpl(), t);
    return host;
  }

  // Of a tensor that a kernel has left: the device's storage that was lent, unless the kernel has moved it.
  Storage storage_of(const Tensor& host) {
    auto owner = owners.find(host.storage().unsafeGetStorageImpl());
    const bool same = owner != owners.end() && owner->second.storage().data() == host.storage().data();
    return same ? owner->second.storage() : on_device(host).storage();
  }

  // What an operator has resized or set: the device's tensor follows its twin.
  void settle() {
    for (auto& [host, t] : pairs) {
      auto* impl = t.unsafeGetTensorImpl();
      const Storage now = storage_of(host);
      if (!now.is_alias_of(t.storage())) impl->set_storage_keep_dtype(now);
      if (host.sizes() != t.sizes() || host.strides() != t.strides() || host.storage_offset() != t.storage_offset())
        impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }

  Tensor returned(const Tensor& host) {
    if (!host.defined()) return host;
    auto known = tensors.find(host.unsafeGetTensorImpl());
    if (known != tensors.end()) return known->second;
    auto owner = owners.find(host.storage().unsafeGetStorageImpl());
    if (owner == owners.end()) return on_device(host);
    auto view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, storage_of(host), owner->second.key_set(),
                                                         host.dtype());
    view.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    return view;
  }
};

// ---- what CUDA refuses, and what it waits for

const std::set<std::string> WAITING = {  // for a size or an answer that depends on values
    "aten::nonzero", "aten::nonzero.out", "aten::masked_select", "aten::masked_select.out", "aten::_unique", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::bincount", "aten::histc",
    "aten::repeat_interleave.Tensor", "aten::equal", "aten::multinomial", "aten::multinomial.out"};

std::string full_name(const c10::OperatorHandle& op) {
  const auto& name = op.schema().operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

// "aten::_log_softmax.out" -> "log_softmax"
std::string plain(std::string name) {
  name = name.substr(name.rfind(':') + 1);
  name = name.substr(0, name.find('.'));
  name.erase(0, name.find_first_not_of('_'));
  return name.substr(0, name.find_last_not_of('_') + 1);
}

// What autocast computes in float32: bfloat16 reaches these where autocast was switched off and the input not converted.
const std::set<std::string>& sensitive() {
#define WORD(...) plain(FIRST(__VA_ARGS__, )),
#define FIRST(name, ...) #name
  static const std::set<std::string> names = {AT_FORALL_FP32(WORD) AT_FORALL_FP32_SET_OPT_DTYPE(WORD) "linalg_vector_norm"};
#undef FIRST
#undef WORD
  return names;
}

[[noreturn]] void refuse_mixture(const std::string& name) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", DEVICE, " and ", HOST,
              "! (", name, ")");
}

void check_devices(const c10::FunctionSchema& schema, const std::string& name, const std::vector<IValue>& given) {
  bool device = false, host = false, written_on_host = false;
  const bool puts = plain(name) == "index_put" || plain(name) == "index_put_impl";
  const bool indexing = puts || plain(name) == "index";  // which has looked up masks and copied indices before it comes here
  for (size_t i = 0; i < given.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    each_tensor(given[i], [&](const Tensor& t) {
      if (!t.defined()) return t;
      if (ours(t)) { device = true; return t; }
      if (alias && alias->isWrite()) written_on_host = true;
      if (puts && i == 1) tell("wait", name + " with indices of the CPU");  // CUDA copies them
      if (!(indexing && i == 1) && t.dim()) host = true;  // CUDA reads one without dimensions as a number
      return t;
    });
  }
  if (device && (host || written_on_host)) refuse_mixture(name);
  if (!puts || given[2].toTensor().numel() == 1) return;  // one value under a mask is a masked_fill
  each_tensor(given[1], [&](const Tensor& t) {
    if (ours(t) && (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte)) tell("wait", name + " with a mask");
    return t;
  });
}

// ---- every operator without a kernel of its own

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = full_name(op);
  const auto begin = stack->end() - schema.arguments().size();
  const std::vector<IValue> given(begin, stack->end());
  check_devices(schema, name, given);
  if (WAITING.count(name)) tell("wait", name);
  Lending lending;
  bool low = false;
  std::transform(given.begin(), given.end(), begin, [&](const IValue& value) {
    if (value.isDevice()) return IValue(HOST);
    return each_tensor(value, [&](const Tensor& t) {
      low = low || (t.defined() && (t.scalar_type() == at::kBFloat16 || t.scalar_type() == at::kHalf));
      return lending.lend(t);
    });
  });
  if (low && sensitive().count(plain(name))) tell("low precision", name);
  op.redispatchBoxed(HOST_KEY, stack);
  lending.settle();
  for (auto value = stack->end() - schema.returns().size(); value != stack->end(); ++value)
    *value = each_tensor(*value, [&](const Tensor& t) { return lending.returned(t); });
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

// ---- kernels

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<c10::Layout>,
             std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &device_memory, DEVICE_KEY, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &device_memory, DEVICE_KEY, c10::dtype_or_default(dtype));
}

Tensor copy_between(const Tensor& from, const Tensor& to, bool non_blocking) {
  if (from.numel() && ours(from) != ours(to)) {
    const bool pinned = is_pinned((ours(from) ? to : from).storage().data());
    std::string what = ours(from) ? "download" : "upload";
    if (pinned && non_blocking) tell(what.c_str(), "pinned");
    else tell("wait", what + (pinned ? ", blocking" : ours(from) ? "" : " of pageable memory"));
  }
  on_host(to).copy_(on_host(from));
  return to;
}

at::Scalar item(const Tensor& t) {
  tell("wait", "item");
  return at::_local_scalar_dense(on_host(t));
}

void record_stream(Tensor&, c10::Stream) {}

Tensor& set_storage(Tensor& t, Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  t.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  t.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return t;
}

Tensor& set_whole_storage(Tensor& t, Storage storage) {
  const int64_t size = storage.nbytes() / t.element_size();
  return set_storage(t, std::move(storage), 0, {size}, {1});
}

// Convolutions compute in float32: those of the CPU have wrong gradients in bfloat16 (torch 2.13).
Tensor full(const Tensor& t) { return t.defined() ? on_host(t).to(at::kFloat) : t; }

void check_convolution(const Tensor& x, const Tensor& weight, const Tensor& other) {
  for (const auto& t : {x, weight, other})
    if (t.defined() && !ours(t)) refuse_mixture("aten::convolution");
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "Input type (", x.scalar_type(), ") and weight type (",
              weight.scalar_type(), ") should be the same");
}

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride,
                   c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
                   int64_t groups) {
  const Tensor b = bias.value_or(Tensor());
  check_convolution(x, weight, b);
  return on_device(at::convolution(full(x), full(weight), full(b), stride, padding, dilation, transposed, output_padding,
                                   groups).to(x.scalar_type()));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& weight, c10::IntArrayRef stride, c10::IntArrayRef padding,
    c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  check_convolution(x, weight, gradient);
  const std::vector<int64_t> bias = {gradient.size(1)};
  auto [of_x, of_weight, of_bias] = at::convolution_backward(full(gradient), full(x), full(weight), c10::IntArrayRef(bias),
      stride, padding, dilation, transposed, output_padding, groups, wanted);
  auto back = [&](const Tensor& t) { return t.defined() ? on_device(t.to(x.scalar_type())) : t; };
  return {back(of_x), back(of_weight), back(of_bias)};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_between);
  library.impl("_local_scalar_dense", item);
  library.impl("record_stream", record_stream);
  library.impl("set_.source_Storage", set_whole_storage);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
}

}  // namespace standin

namespace at {  // whose names the macros use
namespace {
using namespace at::autocast;
Tensor refused_binary_cross_entropy(const Tensor&, const Tensor&, const std::optional<Tensor>&, int64_t) {
  TORCH_CHECK(false, "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.");
}
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // the lists of CUDA
#define LOWERED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define IN_FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define TO_FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(LOWERED)
  AT_FORALL_FP32(IN_FLOAT32)
  AT_FORALL_FP32_SET_OPT_DTYPE(TO_FLOAT32)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(WIDEST)
  m.impl("binary_cross_entropy", refused_binary_cross_entropy);
}
}  // namespace
}  // namespace at

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("register", [] {
    static standin::Hooks hooks;
    at::RegisterPrivateUse1HooksInterface(&hooks);
  });
  module.def("listen", [](pybind11::object call) {  // call(kind, what), or None
    pybind11::handle(standin::listener).dec_ref();
    standin::listener = call.is_none() ? nullptr : call.release().ptr();
  });
  module.def("on_host", &standin::on_host, "the same memory as a tensor of the CPU");
}
