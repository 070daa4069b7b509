// Host primitives: nodes of the graph whose CPU evaluation is a function on this side of the ABI.
#include <cstring>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

#include "common.h"

using namespace mlxcel;

namespace {

// What the task needs; it outlives the node, which MLX detaches as soon as eval_cpu returns.
struct Call {
  std::string name;
  Context context;
  mlxcel_host_fn function;
};

// The memory of arrays during the call. Shapes are copied: nothing keeps the nodes alive then.
class Buffers {
 public:
  void add(const mx::array& a) {
    auto* data = a.nbytes() == 0 ? nullptr : const_cast<char*>(a.data<char>());
    shapes_.push_back(a.shape());
    buffers_.push_back({data, a.nbytes(), nullptr, a.ndim(), number(a.dtype())});
  }

  const mlxcel_buffer* view() {
    for (size_t i = 0; i < buffers_.size(); ++i) {
      buffers_[i].shape = shapes_[i].data();
    }
    return buffers_.data();
  }

  size_t size() const {
    return buffers_.size();
  }

  void zero() {
    for (auto& buffer : buffers_) {
      if (buffer.nbytes > 0) {
        std::memset(buffer.data, 0, buffer.nbytes);
      }
    }
  }

  // Fresh memory has no defined content. This tells the compilers on both sides that something
  // they cannot see has written it, so that reading it is reading some bytes, not undefined.
  void settle() {
    for (auto& buffer : buffers_) {
      __asm__ volatile("" : : "r"(buffer.data) : "memory");
    }
  }

 private:
  std::vector<mx::Shape> shapes_;
  std::vector<mlxcel_buffer> buffers_;
};

// Runs on the stream's thread. MLX keeps the exception and throws it from the eval that waits.
void run(const Call& call, Buffers& inputs, Buffers& outputs) {
  outputs.settle();
  auto status = call.function(
      call.context.get(), inputs.view(), inputs.size(), outputs.view(), outputs.size());
  if (status != 0) {
    // What follows on the stream still runs, and must find defined values (indices, say).
    outputs.zero();
    throw std::runtime_error("host primitive `" + call.name + "`: " + mlxcel_last_error());
  }
}

class HostPrimitive : public mx::Primitive {
 public:
  HostPrimitive(mx::Stream stream, std::shared_ptr<Call> call)
      : mx::Primitive(stream), call_(std::move(call)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    if (!call_) {
      throw std::logic_error("a host primitive is evaluated once");
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    auto task = std::make_shared<std::pair<Buffers, Buffers>>();
    for (size_t i = 0; i < inputs.size(); ++i) {
      require_row_contiguous(inputs[i], i);
      encoder.set_input_array(inputs[i]);
      task->first.add(inputs[i]);
    }
    for (auto& out : outputs) {
      allocate(out);
      encoder.set_output_array(out);
      task->second.add(out);
    }
    encoder.dispatch([call = std::move(call_), task = std::move(task)] {
      run(*call, task->first, task->second);
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::logic_error("a host primitive cannot run on a GPU");
  }

  const char* name() const override {
    return "HostPrimitive";
  }

 private:
  void require_row_contiguous(const mx::array& a, size_t index) const {
    if (!a.flags().row_contiguous) {
      throw std::invalid_argument(
          "host primitive `" + call_->name + "`: input " + std::to_string(index) +
          " is not row-contiguous; pass it through ops::contiguous");
    }
  }

  void allocate(mx::array& out) const {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    if (out.nbytes() > 0 && out.data<char>() == nullptr) {
      throw std::runtime_error(
          "host primitive `" + call_->name + "`: out of memory: cannot allocate " +
          std::to_string(out.nbytes()) + " bytes");
    }
  }

  // Moved into the task by the one evaluation.
  std::shared_ptr<Call> call_;
};

std::vector<mx::array> nodes(
    std::shared_ptr<Call> call,
    const std::vector<mx::array>& inputs,
    const mlxcel_spec* outputs,
    size_t outputs_len) {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> types;
  for (size_t i = 0; i < outputs_len; ++i) {
    shapes.push_back(shape(outputs[i].shape, outputs[i].ndim));
    types.push_back(dtype(outputs[i].dtype));
  }
  auto stream = mx::default_stream(mx::Device::cpu);
  auto primitive = std::make_shared<HostPrimitive>(stream, std::move(call));
  return mx::array::make_arrays(std::move(shapes), types, primitive, inputs);
}

} // namespace

mlxcel_status mlxcel_host_call(
    mlxcel_array** outs,
    const char* name,
    size_t name_len,
    const mlxcel_array* const* inputs,
    size_t inputs_len,
    const mlxcel_spec* outputs,
    size_t outputs_len,
    void* pointer,
    mlxcel_host_fn function,
    mlxcel_drop_fn drop) noexcept {
  std::shared_ptr<Call> call;
  auto status = guard([&] {
    // Until the call owns the context, a failure to build it drops the context here.
    std::unique_ptr<void, mlxcel_drop_fn> pending(pointer, drop);
    std::string name_(name, name_len);
    call.reset(new Call{std::move(name_), Context(pending.release(), drop), function});
  });
  if (status != 0) {
    return status;
  }
  return guard([&] {
    give_all(outs, nodes(std::move(call), arrays(inputs, inputs_len), outputs, outputs_len));
  });
}
