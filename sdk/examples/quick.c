/* Writes numbered rows into an edge database: quick SOCKET TABLE ROWS. */
#include <stdio.h>
#include <stdlib.h>

#include "yunhe_edge.h"

static int failed(YunheEdge *edge, const char *what) {
  fprintf(stderr, "%s: %s\n", what, yunhe_edge_error(edge));
  yunhe_edge_close(edge);
  return 1;
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  char error[256];
  YunheEdge *edge = yunhe_edge_connect(argv[1], 0, error, sizeof error);
  if (!edge) {
    fprintf(stderr, "connect: %s\n", error);
    return 1;
  }
  YunheColumnSpec columns[] = {
      {"car", YUNHE_TYPE_STRING, YUNHE_ROLE_TAG, true},
      {"ts", YUNHE_TYPE_TIMESTAMP_MS, YUNHE_ROLE_TIME, false},
      {"kmh", YUNHE_TYPE_FLOAT64, YUNHE_ROLE_FIELD, true},
      {"gear", YUNHE_TYPE_INT8, YUNHE_ROLE_FIELD, true},
  };
  /* Speeds have one digit behind the point: the database rounds what is written to it. */
  int8_t decimals[] = {-1, -1, 1, -1};
  uint32_t table;
  if (yunhe_edge_declare_decimals(edge, argv[2], columns, decimals, 4, true, &table)) return failed(edge, "declare");
  long rows = atol(argv[3]);

  /* Row by row … */
  for (long at = 0; at < rows / 2; at++) {
    YunheValue row[] = {
        {.kind = YUNHE_VALUE_KIND_STRING, .text = "c-1", .length = 3},
        {.kind = YUNHE_VALUE_KIND_INT, .i = at},
        {.kind = YUNHE_VALUE_KIND_FLOAT, .f = (double)at / 2 + 0.04},
        {.kind = at % 3 ? YUNHE_VALUE_KIND_INT : YUNHE_VALUE_KIND_NULL, .i = at % 7},
    };
    if (yunhe_edge_write_row(edge, table, row, 4, 5000)) return failed(edge, "row");
  }
  /* … and ten at once, column by column. */
  for (long at = rows / 2; at < rows; at += 10) {
    int64_t ts[10];
    double kmh[10];
    int8_t gear[10];
    uint32_t ends[11] = {0};
    uint8_t there[2] = {0, 0};
    char cars[30];
    size_t count = rows - at < 10 ? rows - at : 10;
    for (size_t row = 0; row < count; row++) {
      ts[row] = at + row;
      kmh[row] = (double)(at + row) / 2 + 0.04;
      gear[row] = (int8_t)((at + row) % 7);
      if ((at + row) % 3) there[row / 8] |= 1 << row % 8;
      cars[3 * row] = 'c', cars[3 * row + 1] = '-', cars[3 * row + 2] = '1';
      ends[row + 1] = 3 * (row + 1);
    }
    YunheColumn data[] = {{cars, ends, NULL}, {ts, NULL, NULL}, {kmh, NULL, NULL}, {gear, NULL, there}};
    if (yunhe_edge_write(edge, table, count, data, 4, 5000)) return failed(edge, "columns");
  }
  if (yunhe_edge_flush(edge, 10000)) return failed(edge, "flush");
  /* A refusal has its sentence. */
  YunheValue bad = {.kind = YUNHE_VALUE_KIND_NULL};
  if (yunhe_edge_write_row(edge, table, &bad, 1, 0) != YUNHE_STATUS_INVALID) return 3;
  printf("%s\n", yunhe_edge_error(edge));
  yunhe_edge_close(edge);
  return 0;
}
