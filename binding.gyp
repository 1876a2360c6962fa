{
  "variables": { "sanitize%": "" },
  "targets": [
    {
      "target_name": "longhorn",
      "sources": [
        "native/addon.cc",
        "native/slab.cc",
        "native/io_backend.cc",
        "native/io_ring.cc",
        "native/io_pool.cc",
        "native/disk_queue.cc",
        "native/extent_map.cc",
        "native/file_table.cc",
        "native/file_task.cc",
        "native/file_ops.cc",
        "native/data_socket.cc",
        "native/socket_address.cc",
        "native/socket_hub.cc",
        "native/socket_listen.cc",
        "native/memory_trim.cc"
      ],
      "include_dirs": ["<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": [
        "NAPI_VERSION=9",
        "NODE_ADDON_API_DISABLE_DEPRECATED",
        "NAPI_DISABLE_CPP_EXCEPTIONS",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
      ],
      "cflags": ["-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-O2"],
      "cflags_cc!": ["-fno-rtti", "-std=gnu++17"],
      "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti"],
      "conditions": [
        ["sanitize!=''", {
          "cflags": [
            "-fsanitize=<(sanitize)",
            "-fno-sanitize=vptr",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
            "-g"
          ],
          "ldflags": ["-fsanitize=<(sanitize)"]
        }]
      ]
    }
  ]
}
