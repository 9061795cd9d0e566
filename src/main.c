/* main.c - the program; everything it does is in app. */
#include "app/app.h"

int main(int argc, char **argv) {
    return td_app_main(argc, argv);
}
