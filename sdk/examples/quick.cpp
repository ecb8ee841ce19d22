// Writes numbered rows into an edge database: quick SOCKET TABLE ROWS. The handle closes itself.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>

#include "yunhe_edge.h"

struct Edge {
  std::unique_ptr<YunheEdge, void (*)(YunheEdge *)> handle{nullptr, yunhe_edge_close};

  explicit Edge(const char *path) {
    char error[256] = "";
    handle.reset(yunhe_edge_connect(path, 1 << 16, error, sizeof error));
    if (!handle) throw std::runtime_error(error);
  }
  void operator()(YunheStatus status) const {
    if (status != YUNHE_STATUS_OK) throw std::runtime_error(yunhe_edge_error(handle.get()));
  }
};

int main(int argc, char **argv) try {
  if (argc < 4) return 2;
  Edge edge{argv[1]};
  const YunheColumnSpec columns[] = {{"ts", YUNHE_TYPE_TIMESTAMP_MS, YUNHE_ROLE_TIME, false},
                                     {"kmh", YUNHE_TYPE_FLOAT32, YUNHE_ROLE_FIELD, true}};
  uint32_t table = 0;
  edge(yunhe_edge_declare(edge.handle.get(), argv[2], columns, 2, true, &table));
  const long rows = std::atol(argv[3]);
  for (long at = 0; at < rows; at++) {
    YunheValue row[2] = {};
    row[0].kind = YUNHE_VALUE_KIND_INT;
    row[0].i = at;
    row[1].kind = YUNHE_VALUE_KIND_FLOAT;
    row[1].f = at * 0.5;
    edge(yunhe_edge_write_row(edge.handle.get(), table, row, 2, 5000));
  }
  edge(yunhe_edge_flush(edge.handle.get(), 10000));
} catch (const std::exception &error) {
  std::cerr << error.what() << "\n";
  return 1;
}
